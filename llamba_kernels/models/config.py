"""Configuration of a Llama in which some attention layers are Mamba-2 mixers."""

from collections.abc import Iterable

from transformers import LlamaConfig, PreTrainedConfig

LAYER_KINDS = ("attention", "mamba2")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # those whose frequencies do not depend on the sequence length
STATE_SIZES = range(16, 257, 16)
STATE_RULE = "be a multiple of 16 up to 256, the state sizes that decoding runs"

# What a Llama checkpoint's configuration and ours have in common.
_LLAMA_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


class LlambaConfig(PreTrainedConfig):
    """Llama fields as in `transformers.LlamaConfig`, plus what each layer is and the shape of the Mamba-2 mixers.

    Args:
        layers: "attention" or "mamba2" for each layer; default attention everywhere.
        mamba_num_heads: heads of z, dt, the state and the output; d_inner = mamba_num_heads * mamba_head_dim.
        mamba_x_heads, mamba_B_heads, mamba_C_heads: heads of x, B and C, each a divisor of mamba_num_heads. Head h
            reads x head h // (mamba_num_heads // mamba_x_heads), so the key/value sharing of GQA stays un-repeated.
        mamba_d_state: state columns per head. mamba_d_conv: width of the causal convolution.
        mamba_norm_group_size: channels that share one RMS in the gated norm.
        mamba_chunk_size: tokens per chunk of the full-sequence scan; speed only.

    The mamba_* shapes default to those of an attention-initialised mixer (arXiv 2408.15237): queries, keys and values
    become C, B and x, so every size is the attention's own.
    """

    model_type = "llamba_hybrid"

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    rope_parameters: dict | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    use_cache: bool = True

    layers: list[str] | None = None
    mamba_num_heads: int | None = None
    mamba_head_dim: int | None = None
    mamba_d_state: int | None = None
    mamba_x_heads: int | None = None
    mamba_B_heads: int | None = None
    mamba_C_heads: int | None = None
    mamba_d_conv: int = 4
    mamba_norm_group_size: int | None = None
    mamba_chunk_size: int = 64

    def __post_init__(self, **kwargs):
        def default(name, value):
            if getattr(self, name) is None:
                setattr(self, name, value)

        default("num_key_value_heads", self.num_attention_heads)
        default("head_dim", self.hidden_size // max(self.num_attention_heads, 1))
        default("layers", ["attention"] * self.num_hidden_layers)
        default("mamba_num_heads", self.num_attention_heads)
        default("mamba_head_dim", self.head_dim)
        default("mamba_d_state", self.head_dim)
        default("mamba_x_heads", self.num_key_value_heads)
        default("mamba_B_heads", self.num_key_value_heads)
        default("mamba_C_heads", self.num_attention_heads)
        default("mamba_norm_group_size", self.mamba_head_dim)
        super().__post_init__(**kwargs)
        self._check()

    @classmethod
    def from_llama(cls, config: LlamaConfig, mamba_layers: Iterable[int] = ()) -> "LlambaConfig":
        """The configuration of `config`'s model with the layers in `mamba_layers` as attention-initialised Mamba-2."""
        fields = {name: getattr(config, name) for name in _LLAMA_FIELDS}
        mamba_layers = sorted(set(mamba_layers))
        for layer in mamba_layers:
            if not 0 <= layer < config.num_hidden_layers:
                raise ValueError(
                    f"LlambaConfig: mamba_layers must be in 0..{config.num_hidden_layers - 1}; got {layer}"
                )
        layers = ["mamba2" if i in mamba_layers else "attention" for i in range(config.num_hidden_layers)]
        return cls(**fields, rope_parameters=dict(config.rope_parameters), layers=layers)

    @property
    def mamba_layers(self) -> list[int]:
        return [i for i, kind in enumerate(self.layers) if kind == "mamba2"]

    @property
    def mamba_d_inner(self) -> int:
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_conv_dim(self) -> int:
        """Channels of x, B and C together: what the convolution sees and what decoding keeps of a token."""
        return self.mamba_x_heads * self.mamba_head_dim + (self.mamba_B_heads + self.mamba_C_heads) * self.mamba_d_state

    def _check(self):
        def require(ok: bool, field: str, rule: str):
            if not ok:
                raise ValueError(f"LlambaConfig: {field} must {rule}; got {getattr(self, field)}")

        for field in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
            require(getattr(self, field) > 0, field, "be positive")
        require(len(self.layers) == self.num_hidden_layers, "layers", f"name {self.num_hidden_layers} layers")
        require(all(kind in LAYER_KINDS for kind in self.layers), "layers", f"hold only {' or '.join(LAYER_KINDS)}")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            f"divide num_attention_heads, {self.num_attention_heads}",
        )
        require(self.head_dim > 0 and self.head_dim % 2 == 0, "head_dim", "be even and positive")
        require(
            self.rope_parameters.get("rope_type") in ROPE_TYPES, "rope_parameters", f"have a rope_type in {ROPE_TYPES}"
        )
        for field in ("mamba_num_heads", "mamba_head_dim", "mamba_d_state", "mamba_d_conv", "mamba_chunk_size"):
            require(getattr(self, field) > 0, field, "be positive")
        require(not self.mamba_layers or self.mamba_d_state in STATE_SIZES, "mamba_d_state", STATE_RULE)
        require(2 <= self.mamba_d_conv <= 4, "mamba_d_conv", "be 2, 3 or 4")
        for field in ("mamba_x_heads", "mamba_B_heads", "mamba_C_heads"):
            heads = getattr(self, field)
            require(
                heads > 0 and self.mamba_num_heads % heads == 0,
                field,
                f"divide mamba_num_heads, {self.mamba_num_heads}",
            )
        group = self.mamba_norm_group_size
        require(
            group > 0 and self.mamba_d_inner % group == 0,
            "mamba_norm_group_size",
            f"divide d_inner, {self.mamba_d_inner}",
        )
