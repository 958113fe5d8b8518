"""Granite-4 hybrids without routed experts: Mamba-2 and attention layers, with IBM's four multipliers."""

from transformers import GraniteMoeHybridConfig

from .fields import ATTENTION, SIZES, copied, refuse, require, require_no_limit, require_silu, stock_mamba2
from .layout import Layout

NAME = "granitemoehybrid"


def matches(settings: dict) -> bool:
    return settings.get("model_type") == NAME


def config(settings: dict) -> dict:
    theirs = GraniteMoeHybridConfig.from_dict(settings)
    require_silu(theirs)
    require_no_limit(theirs)
    require(theirs, "num_local_experts", 0, "as mixtures of experts are not run")
    positions = theirs.position_embedding_type
    if positions not in ("rope", "nope", None):
        raise refuse("position_embedding_type", "be rope or nope", positions)
    sizes = (theirs.mamba_n_heads, theirs.mamba_d_head, theirs.mamba_d_state, theirs.mamba_n_groups)
    rope = {"rope_parameters": dict(theirs.rope_parameters)} if positions == "rope" else {"rotary_dim": 0}
    attention = ("attention", "full_attention")
    return {
        **copied(theirs, *SIZES, *ATTENTION, "hidden_act", "attention_bias"),
        **stock_mamba2(*sizes, theirs.mamba_d_conv, theirs.mamba_conv_bias, theirs.mamba_proj_bias),
        **rope,
        "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        "intermediate_size": theirs.shared_intermediate_size,
        "layers": ["attention" if kind in attention else "mamba2" for kind in theirs.layer_types],
        "attention_scale": float(theirs.attention_multiplier),
        "embedding_multiplier": float(theirs.embedding_multiplier),
        "residual_multiplier": float(theirs.residual_multiplier),
        "logits_divisor": float(theirs.logits_scaling),
    }


def layout(config) -> Layout:
    joined = (".shared_mlp.input_linear.", ".mlp.gate_proj.", ".mlp.up_proj.")
    return Layout(((".mlp.down_proj.", ".shared_mlp.output_linear."),), (joined,))
