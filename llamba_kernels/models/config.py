"""Configuration of a Llama in which some attention layers are Mamba-2 mixers."""

import inspect
import math
import typing
from collections.abc import Iterable
from types import NoneType, UnionType

import torch
from transformers import LlamaConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LAYER_KINDS = ("attention", "mamba2")
# The scalings whose frequencies do not depend on the sequence length, and what each needs besides rope_theta.
ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
STATE_SIZES = range(16, 257, 16)
LARGEST = 2**18  # of a size without a limit of its own: far above any model, and refused before memory is asked for
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

    def _require(self, ok: bool, field: str, rule: str):
        if not ok:
            raise ValueError(f"LlambaConfig: {field} must {rule}; got {getattr(self, field)!r}")

    def _check_rope(self):
        rope = self.rope_parameters
        self._require(
            rope.get("rope_type") in ROPE_TYPES, "rope_parameters", f"have a rope_type in {tuple(ROPE_TYPES)}"
        )
        for name in ("rope_theta", *ROPE_TYPES[rope["rope_type"]]):
            value = rope.get(name)
            positive = _is_of(value, float) and 0 < value < math.inf
            self._require(positive, "rope_parameters", f"have a positive {name}")
        if rope["rope_type"] == "llama3":
            rises = rope["low_freq_factor"] < rope["high_freq_factor"]
            self._require(rises, "rope_parameters", "have a low_freq_factor below its high_freq_factor")
        self._require(self._has_frequencies(), "rope_parameters", "give each pair of channels a finite frequency")

    def _has_frequencies(self) -> bool:
        """Whether transformers makes sense of all that rope_parameters may hold besides what is needed."""
        kind = self.rope_parameters["rope_type"]
        if kind == "default":
            return True
        try:
            with torch.device("cpu"):
                frequencies, scale = ROPE_INIT_FUNCTIONS[kind](self)
            return len(frequencies) == self.head_dim // 2 and bool((frequencies * scale).isfinite().all())
        except (TypeError, ValueError, ArithmeticError):
            return False

    def _check(self):
        require = self._require
        require(len(self.layers) == self.num_hidden_layers, "layers", f"name {self.num_hidden_layers} layers")
        require(all(kind in LAYER_KINDS for kind in self.layers), "layers", f"hold only {' or '.join(LAYER_KINDS)}")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            f"divide num_attention_heads, {self.num_attention_heads}",
        )
        require(self.head_dim > 0 and self.head_dim % 2 == 0, "head_dim", "be even and positive")
        self._check_rope()
        require(self.hidden_act in ACT2FN, "hidden_act", "be an activation that transformers has")
        require(0 < self.rms_norm_eps < math.inf, "rms_norm_eps", "be positive and finite")
        if self.pad_token_id is not None:  # below 0 it counts from the end
            require(
                -self.vocab_size <= self.pad_token_id < self.vocab_size,
                "pad_token_id",
                f"be below vocab_size, {self.vocab_size}",
            )
        require(not self.mamba_layers or self.mamba_d_state in STATE_SIZES, "mamba_d_state", STATE_RULE)
        require(2 <= self.mamba_d_conv <= 4, "mamba_d_conv", "be 2, 3 or 4")
        for field in ("mamba_x_heads", "mamba_B_heads", "mamba_C_heads"):
            divides = self.mamba_num_heads % getattr(self, field) == 0
            require(divides, field, f"divide mamba_num_heads, {self.mamba_num_heads}")
        divides = self.mamba_d_inner % self.mamba_norm_group_size == 0
        require(divides, "mamba_norm_group_size", f"divide d_inner, {self.mamba_d_inner}")


# The fields above and their types.
_FIELD_TYPES = inspect.get_annotations(LlambaConfig)
_LIMITS = {"vocab_size": 2**31 - 1, "max_position_embeddings": 2**31 - 1, "num_hidden_layers": 4096}
_SIZES = {
    name: _LIMITS.get(name, LARGEST)
    for name, hint in _FIELD_TYPES.items()
    if hint in (int, int | None) and not name.endswith("_token_id")
}
_WORDS = {int: "an int", float: "a number", bool: "true or false", str: "a string", dict: "an object", NoneType: "null"}


def check_fields(settings: dict) -> None:
    """Each field in `settings`, such as config.json holds, by itself: TypeError or, for a size, ValueError."""
    for field, hint in _FIELD_TYPES.items():
        value = settings.get(field)
        if field in settings and not _is_of(value, hint):
            raise TypeError(f"LlambaConfig: {field} must be {_words(hint)}; got {value!r}")
        if field in _SIZES and value is not None and value <= 0:
            raise ValueError(f"LlambaConfig: {field} must be positive; got {value}")
        if field in _SIZES and value is not None and value > _SIZES[field]:
            raise ValueError(f"LlambaConfig: {field} must be at most {_SIZES[field]}; got {value}")


def _is_of(value, hint) -> bool:
    if isinstance(hint, UnionType):
        return any(_is_of(value, each) for each in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        return isinstance(value, (list, tuple)) and all(_is_of(each, *typing.get_args(hint)) for each in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _words(hint) -> str:
    if isinstance(hint, UnionType):
        return " or ".join(map(_words, typing.get_args(hint)))
    if typing.get_origin(hint) is list:
        return f"a list of {_words(*typing.get_args(hint)).removeprefix('an ').removeprefix('a ')}s"
    return _WORDS[hint]
