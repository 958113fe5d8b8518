"""transformers' Mamba-2 (Mamba-Codestral and converted state-spaces models)."""

from transformers import Mamba2Config

from .fields import refuse, require_no_limit, require_silu, stock_mamba2, without_attention
from .layout import BACKBONE, Layout

NAME = "mamba2"
ALIASES = (("backbone.embeddings.", "backbone.embedding."),)


def matches(settings: dict) -> bool:
    return settings.get("model_type") == NAME


def config(settings: dict) -> dict:
    theirs = Mamba2Config.from_dict(settings)
    require_silu(theirs)
    require_no_limit(theirs)
    if theirs.num_heads * theirs.head_dim != int(theirs.expand * theirs.hidden_size):
        inner = int(theirs.expand * theirs.hidden_size)
        raise refuse("head_dim", f"make num_heads * head_dim = expand * hidden_size = {inner}", theirs.head_dim)
    sizes = (theirs.num_heads, theirs.head_dim, theirs.state_size, theirs.n_groups, theirs.conv_kernel)
    return {**without_attention(theirs, "mamba2"), **stock_mamba2(*sizes, theirs.use_conv_bias, theirs.use_bias)}


def layout(config) -> Layout:
    return Layout(BACKBONE)
