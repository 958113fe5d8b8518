"""What a LlambaConfig must be: its fields by themselves, then together. One sentence says which is not."""

import math
import typing
from types import NoneType, UnionType
from typing import TYPE_CHECKING

from transformers.activations import ACT2FN

from .rope import inverse_frequencies

if TYPE_CHECKING:
    from .config import LlambaConfig

LAYER_KINDS = ("attention", "mamba1", "mamba2", "none")
# The scalings whose frequencies do not depend on the sequence length, and what each needs besides rope_theta.
ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
STATE_SIZES = range(16, 257, 16)
STATE_RULE = "be a multiple of 16 up to 256, the state sizes that decoding runs"
LARGEST = 2**18  # of a size without a limit of its own: far above any model, and refused before memory is asked for
LIMITS = {"vocab_size": 2**31 - 1, "max_position_embeddings": 2**31 - 1, "num_hidden_layers": 4096}
MAY_BE_ZERO = ("rotary_dim",)
WORDS = {int: "an int", float: "a number", bool: "true or false", str: "a string", dict: "an object", NoneType: "null"}


def check_types(settings: dict, types: dict) -> None:
    """Each of the `settings` that `types` names has its type, and is positive and not absurd if it is a size."""
    for field, hint in types.items():
        value = settings.get(field)
        if field in settings and not _is_of(value, hint):
            raise TypeError(f"LlambaConfig: {field} must be {_words(hint)}; got {value!r}")
        if value is None or hint not in (int, int | None) or field.endswith("_token_id"):
            continue
        if value <= 0 and not (field in MAY_BE_ZERO and value == 0):
            raise ValueError(f"LlambaConfig: {field} must be positive; got {value}")
        most = LIMITS.get(field, LARGEST)
        if value > most:
            raise ValueError(f"LlambaConfig: {field} must be at most {most}; got {value}")


def check_config(config: "LlambaConfig") -> None:
    """All fields, which have their types and defaults, against each other."""
    _check_layers(config)
    _check_attention(config)
    _check_numbers(config)
    _check_mamba2(config)
    if "mamba1" in config.layers:
        _check_mamba1(config)


def _require(config, ok: bool, field: str, rule: str):
    if not ok:
        raise ValueError(f"LlambaConfig: {field} must {rule}; got {getattr(config, field)!r}")


def _check_layers(config):
    count = config.num_hidden_layers
    _require(config, len(config.layers) == count, "layers", f"name {count} layers")
    known = all(kind in LAYER_KINDS for kind in config.layers)
    _require(config, known, "layers", f"hold only {' or '.join(LAYER_KINDS)}")
    _require(config, len(config.mlp_layers) == count, "mlp_layers", f"say true or false of {count} layers")
    empty = any(kind == "none" and not mlp for kind, mlp in zip(config.layers, config.mlp_layers, strict=True))
    _require(config, not empty, "mlp_layers", 'be true for every layer that is "none"')


def _check_attention(config):
    attends = "attention" in config.layers
    rotates_all = config.rotary_dim == config.head_dim
    even = config.head_dim % 2 == 0 or not (attends and rotates_all)
    _require(config, config.head_dim > 0 and even, "head_dim", "be even and positive")
    if not attends:
        return
    divides = config.num_attention_heads % config.num_key_value_heads == 0
    _require(config, divides, "num_key_value_heads", f"divide num_attention_heads, {config.num_attention_heads}")
    fits = config.rotary_dim <= config.head_dim and config.rotary_dim % 2 == 0
    _require(config, fits, "rotary_dim", f"be even and at most head_dim, {config.head_dim}")
    _require(config, 0 < config.attention_scale < math.inf, "attention_scale", "be positive and finite")
    if config.rotary_dim:
        _check_rope(config)


def _check_rope(config):
    rope = config.rope_parameters
    _require(config, rope.get("rope_type") in ROPE_TYPES, "rope_parameters", f"have a rope_type in {tuple(ROPE_TYPES)}")
    for name in ("rope_theta", *ROPE_TYPES[rope["rope_type"]]):
        value = rope.get(name)
        positive = _is_of(value, float) and 0 < value < math.inf
        _require(config, positive, "rope_parameters", f"have a positive {name}")
    if rope["rope_type"] == "llama3":
        rises = rope["low_freq_factor"] < rope["high_freq_factor"]
        _require(config, rises, "rope_parameters", "have a low_freq_factor below its high_freq_factor")
    _require(config, _has_frequencies(config), "rope_parameters", "give each pair of channels a finite frequency")


def _has_frequencies(config) -> bool:
    """Whether transformers makes sense of all that rope_parameters may hold besides what is needed."""
    if config.rope_parameters["rope_type"] == "default":
        return True
    try:
        frequencies, scale = inverse_frequencies(config)
        return len(frequencies) == config.rotary_dim // 2 and bool((frequencies * scale).isfinite().all())
    except (TypeError, ValueError, ArithmeticError):
        return False


def _check_numbers(config):
    _require(config, config.hidden_act in ACT2FN, "hidden_act", "be an activation that transformers has")
    for field in ("rms_norm_eps", "mamba_norm_eps", "mamba1_inner_norm_eps", "logits_divisor"):
        _require(config, 0 < getattr(config, field) < math.inf, field, "be positive and finite")
    for field in ("embedding_multiplier", "residual_multiplier"):
        _require(config, math.isfinite(getattr(config, field)), field, "be finite")
    if config.pad_token_id is not None:  # below 0 it counts from the end
        within = -config.vocab_size <= config.pad_token_id < config.vocab_size
        _require(config, within, "pad_token_id", f"be below vocab_size, {config.vocab_size}")


def _check_mamba2(config):
    sized = "mamba2" not in config.layers or config.mamba_d_state in STATE_SIZES
    _require(config, sized, "mamba_d_state", STATE_RULE)
    _require(config, 2 <= config.mamba_d_conv <= 4, "mamba_d_conv", "be 2, 3 or 4")
    for field in ("mamba_x_heads", "mamba_B_heads", "mamba_C_heads"):
        divides = config.mamba_num_heads % getattr(config, field) == 0
        _require(config, divides, field, f"divide mamba_num_heads, {config.mamba_num_heads}")
    divides = config.mamba_d_inner % config.mamba_norm_group_size == 0
    _require(config, divides, "mamba_norm_group_size", f"divide d_inner, {config.mamba_d_inner}")


def _check_mamba1(config):
    inner, kinds = config.mamba1_d_inner, ("conv", "input")
    _require(config, config.mamba1_selection in kinds, "mamba1_selection", f"be {' or '.join(kinds)}")
    sized = config.mamba1_d_state % 16 == 0 and config.mamba1_d_state <= 64
    _require(config, sized, "mamba1_d_state", "be a multiple of 16 up to 64, the state sizes that decoding runs")
    heads_fit = inner % config.mamba1_headdim == 0
    _require(config, heads_fit, "mamba1_d_inner", f"be a multiple of mamba1_d_state, {config.mamba1_d_state}")
    heads = inner // config.mamba1_headdim
    shares = config.mamba1_x_heads > 0 and heads % config.mamba1_x_heads == 0
    _require(config, shares, "mamba1_x_heads", f"divide mamba1_d_inner / {config.mamba1_headdim} = {heads}")
    for field in ("mamba1_B_heads", "mamba1_C_heads"):
        divides = getattr(config, field) > 0 and inner % getattr(config, field) == 0
        _require(config, divides, field, f"divide mamba1_d_inner, {inner}")
    norms = (None, "plain", "weighted") if config.mamba1_selection == "conv" else (None,)
    words = " or ".join("null" if norm is None else norm for norm in norms)
    rule = f"be {words} when mamba1_selection is {config.mamba1_selection}"
    _require(config, config.mamba1_inner_norm in norms, "mamba1_inner_norm", rule)


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
    if hint == list[bool]:
        return "a list of true or false"
    if typing.get_origin(hint) is list:
        return f"a list of {_words(*typing.get_args(hint)).removeprefix('an ').removeprefix('a ')}s"
    return WORDS[hint]
