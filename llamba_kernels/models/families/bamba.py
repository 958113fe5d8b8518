"""Bamba: Mamba-2 and attention layers with half of each head rotated, SwiGLU in each."""

from transformers import BambaConfig

from ..config import LlambaConfig
from .fields import (
    ATTENTION,
    SIZES,
    copied,
    llama_settings,
    refuse,
    require_no_limit,
    require_silu,
    stock_heads,
    stock_mamba2,
    stock_mamba2_settings,
)
from .layout import FEED_FORWARD, Layout

NAME = "bamba"


def matches(settings: dict) -> bool:
    return settings.get("model_type") == NAME


def config(settings: dict) -> dict:
    theirs = BambaConfig.from_dict(settings)
    require_silu(theirs)
    require_no_limit(theirs)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    rope = dict(theirs.rope_parameters)
    rotary = int(head_dim * rope.pop("partial_rotary_factor", 1.0))
    if settings.get("attn_rotary_emb") not in (None, rotary):
        raise refuse(
            "attn_rotary_emb", f"be {rotary}, the part of a head that transformers rotates", settings["attn_rotary_emb"]
        )
    attention = theirs.attn_layer_indices or []
    sizes = (theirs.mamba_n_heads, theirs.mamba_d_head, theirs.mamba_d_state, theirs.mamba_n_groups)
    return {
        **copied(theirs, *SIZES, *ATTENTION, "intermediate_size", "hidden_act", "attention_bias", "mlp_bias"),
        **stock_mamba2(*sizes, theirs.mamba_d_conv, theirs.mamba_conv_bias, theirs.mamba_proj_bias),
        "head_dim": head_dim,
        "rope_parameters": rope,
        "rotary_dim": rotary,
        "layers": ["attention" if i in attention else "mamba2" for i in range(theirs.num_hidden_layers)],
    }


def layout(config) -> Layout:
    return Layout(FEED_FORWARD)


heads = stock_heads


def settings(config: LlambaConfig) -> dict:
    """The config.json of one of our hybrids, its mixers with the heads of `heads`."""
    if not config.rotary_dim:
        raise refuse("rotary_dim", "be positive in the layout bamba, whose attention always rotates", 0)
    part = {"partial_rotary_factor": config.rotary_dim / config.head_dim}
    common = llama_settings(config, NAME, "BambaForCausalLM")
    if common["rope_scaling"] is None:
        rope = {"rope_parameters": {**config.rope_parameters, **part}}
    else:  # takes the place of rope_parameters
        rope = {"rope_scaling": {**common["rope_scaling"], **part}}
    return {
        **common,
        **stock_mamba2_settings(config),
        **rope,
        "attn_layer_indices": [i for i, kind in enumerate(config.layers) if kind == "attention"],
        "attn_rotary_emb": config.rotary_dim,
    }
