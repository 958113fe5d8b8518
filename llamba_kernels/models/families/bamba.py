"""Bamba: Mamba-2 and attention layers with half of each head rotated, SwiGLU in each."""

from transformers import BambaConfig

from .fields import ATTENTION, SIZES, copied, refuse, require_no_limit, require_silu, stock_mamba2
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
        raise refuse("attn_rotary_emb", f"be {rotary}, the part of a head that transformers rotates", rotary)
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
