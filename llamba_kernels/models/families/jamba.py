"""Jamba without experts: Mamba with an RMSNorm on dt, B and C, attention without positions, SwiGLU in each layer."""

from transformers import JambaConfig

from .fields import ATTENTION, SIZES, copied, refuse, require_silu, stock_mamba1
from .layout import FEED_FORWARD, Layout

NAME = "jamba"


def matches(settings: dict) -> bool:
    return settings.get("model_type") == NAME


def config(settings: dict) -> dict:
    theirs = JambaConfig.from_dict(settings)
    require_silu(theirs)
    if max(theirs.layers_num_experts, default=1) > 1:
        raise refuse("num_experts", "be 1, as mixtures of experts are not run", theirs.num_experts)
    sizes = (theirs.mamba_expand * theirs.hidden_size, theirs.mamba_d_state, int(theirs.mamba_dt_rank))
    return {
        **copied(theirs, *SIZES, *ATTENTION, "intermediate_size", "hidden_act"),
        **stock_mamba1(*sizes, theirs.mamba_d_conv, theirs.mamba_conv_bias, theirs.mamba_proj_bias),
        "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        "rotary_dim": 0,
        "layers": ["attention" if "attention" == kind else "mamba1" for kind in theirs.layers_block_type],
        "mamba1_inner_norm": "weighted",
        "mamba1_inner_norm_eps": theirs.rms_norm_eps,
    }


def layout(config) -> Layout:
    inner = ((".B_layernorm.", ".b_layernorm."), (".C_layernorm.", ".c_layernorm."))
    return Layout((*FEED_FORWARD, *inner))
