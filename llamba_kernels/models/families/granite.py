"""Granite-4 hybrids without routed experts: Mamba-2 and attention layers, with IBM's four multipliers."""

from transformers import GraniteMoeHybridConfig

from ..config import LlambaConfig
from .fields import (
    ATTENTION,
    SIZES,
    copied,
    llama_settings,
    refuse,
    require,
    require_no_limit,
    require_silu,
    stock_heads,
    stock_mamba2,
    stock_mamba2_settings,
)
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


heads = stock_heads


def settings(config: LlambaConfig) -> dict:
    """The config.json of one of our hybrids, its mixers with the heads of `heads`; layer_types as vLLM reads them."""
    return {
        **llama_settings(config, NAME, "GraniteMoeHybridForCausalLM"),
        **stock_mamba2_settings(config),
        "layer_types": ["attention" if kind == "attention" else "mamba" for kind in config.layers],
        "position_embedding_type": "rope" if config.rotary_dim else "nope",
        "shared_intermediate_size": config.intermediate_size,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "attention_multiplier": config.attention_scale,
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": config.logits_divisor,
    }
