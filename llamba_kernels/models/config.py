"""Configuration of a language model whose layers mix tokens by attention, Mamba-1, Mamba-2 or not at all."""

import inspect
from collections.abc import Iterable

from transformers import LlamaConfig, PreTrainedConfig

from . import config_checks

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
    """Llama fields as in `transformers.LlamaConfig`, plus what each layer is and the shape of the mixers.

    A layer is hidden += residual_multiplier * mixer(norm(hidden)), then the same with its MLP; it may lack either.

    Args:
        layers: "attention", "mamba1", "mamba2" or "none" (an MLP alone) for each layer; default attention everywhere.
        mlp_layers: whether each layer has an MLP; default all. mlp_gated: False: down(act(up(u))), without gate_proj.
        rotary_dim: channels of a head that RoPE rotates, the first ones; default all, 0: no RoPE.
        sliding_window: a token sees itself and the sliding_window - 1 tokens before it; None: all of them.
        attention_scale: of the scores; default head_dim ** -0.5.
        embedding_multiplier, logits_divisor: of the embedded tokens, and of what lm_head gives.
        mamba_conv_bias, mamba_proj_bias: biases of conv1d, and of the projections from and to the residual stream.
        mamba_norm_eps: of the gated norm; default rms_norm_eps.
        mamba_num_heads: heads of z, dt, the state and the output; d_inner = mamba_num_heads * mamba_head_dim.
        mamba_x_heads, mamba_B_heads, mamba_C_heads: heads of x, B and C, each a divisor of mamba_num_heads. Head h
            reads x head h // (mamba_num_heads // mamba_x_heads), so the key/value sharing of GQA stays un-repeated.
        mamba_d_state: state columns per head. mamba_d_conv: width of the causal convolution, of both kinds of Mamba.
        mamba_norm_group_size: channels that share one RMS in the gated norm.
        mamba_chunk_size: tokens per chunk of the full-sequence scan; speed only.
        mamba1_d_inner, mamba1_d_state, mamba1_dt_rank: channels, state columns per channel, columns of dt_proj.
        mamba1_selection: what dt, B and C come from: "conv", the convolved x, as in Mamba; "input", the layer's input,
            as in MambaInLlama's attention-initialised mixers, whose heads have mamba1_d_state channels.
        mamba1_x_heads: of "input": heads of x, repeated to d_inner channels before the convolution; 1 otherwise.
        mamba1_B_heads, mamba1_C_heads: channel c reads B head c // (mamba1_d_inner // mamba1_B_heads); C likewise.
        mamba1_inner_norm: RMSNorm of dt_proj's input, B and C, with mamba1_inner_norm_eps: None, "plain" (without
            weights, Falcon-Mamba) or "weighted" (Jamba).
        mamba1_dt_bias_count: 2: dt_proj's bias is added twice, as MambaInLlama's Mamba-1 models were trained.
        origin: the checkpoint that this was read from: {"family": its name, "config": its config.json}; for export.

    The mamba_* shapes default to those of an attention-initialised mixer (arXiv 2408.15237): queries, keys and values
    become C, B and x, so every size is the attention's own. The mamba1_* shapes default to Mamba's, expanded by 2, or
    with "input" to an attention-initialised mixer's.
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

    mlp_layers: list[bool] | None = None
    mlp_gated: bool = True
    rotary_dim: int | None = None
    sliding_window: int | None = None
    attention_scale: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    mamba_norm_eps: float | None = None
    mamba1_d_inner: int | None = None
    mamba1_d_state: int = 16
    mamba1_dt_rank: int | None = None
    mamba1_selection: str = "conv"
    mamba1_x_heads: int | None = None
    mamba1_B_heads: int | None = None
    mamba1_C_heads: int | None = None
    mamba1_inner_norm: str | None = None
    mamba1_inner_norm_eps: float = 1e-6
    mamba1_dt_bias_count: int = 1
    origin: dict | None = None

    def __post_init__(self, **kwargs):
        check_fields({field: getattr(self, field) for field in _FIELD_TYPES})  # before anything is computed from them

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
        default("mlp_layers", [True] * self.num_hidden_layers)
        default("rotary_dim", self.head_dim)
        default("attention_scale", max(self.head_dim, 1) ** -0.5)
        default("mamba_norm_eps", self.rms_norm_eps)
        from_input = self.mamba1_selection == "input"
        attention_dim = self.num_attention_heads * self.head_dim
        shared_heads = self.num_key_value_heads * self.head_dim // self.mamba1_d_state
        default("mamba1_d_inner", attention_dim if from_input else 2 * self.hidden_size)
        default("mamba1_dt_rank", -(-self.hidden_size // 16))
        default("mamba1_x_heads", shared_heads if from_input else 1)
        default("mamba1_B_heads", shared_heads if from_input else 1)
        default("mamba1_C_heads", self.mamba1_d_inner // self.mamba1_d_state if from_input else 1)
        super().__post_init__(**kwargs)
        config_checks.check_config(self)

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
        """The layers with a recurrent state, of either kind."""
        return [i for i, kind in enumerate(self.layers) if kind in ("mamba1", "mamba2")]

    @property
    def mamba_d_inner(self) -> int:
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def mamba_conv_dim(self) -> int:
        """Channels of x, B and C together: what the convolution sees and what decoding keeps of a token."""
        return self.mamba_x_heads * self.mamba_head_dim + (self.mamba_B_heads + self.mamba_C_heads) * self.mamba_d_state

    @property
    def mamba1_headdim(self) -> int:
        """Channels of a Mamba-1 mixer's x head."""
        return self.mamba1_d_state if self.mamba1_selection == "input" else self.mamba1_d_inner

    @property
    def mamba1_selection_sizes(self) -> tuple[int, int, int]:
        """Columns of dt_proj's input, of B and of C in a Mamba-1 mixer."""
        return (
            self.mamba1_dt_rank,
            self.mamba1_B_heads * self.mamba1_d_state,
            self.mamba1_C_heads * self.mamba1_d_state,
        )

    @property
    def mamba1_x_dim(self) -> int:
        """Channels of a Mamba-1 mixer's raw x: what decoding keeps of a token for the convolution."""
        return self.mamba1_x_heads * self.mamba1_headdim


_FIELD_TYPES = inspect.get_annotations(LlambaConfig)


def check_fields(settings: dict) -> None:
    """Each field in `settings`, such as config.json holds, by itself: TypeError or, for a size, ValueError."""
    config_checks.check_types(settings, _FIELD_TYPES)
