"""transformers' Mamba: state-spaces' models with "-hf" in their names, TRI's mamba-7b-rw."""

from transformers import MambaConfig

from .fields import require_silu, stock_mamba1, without_attention
from .layout import BACKBONE, Layout

NAME = "mamba"
ALIASES = (("backbone.embeddings.", "backbone.embedding."),)  # in files made before transformers settled on its own


def matches(settings: dict) -> bool:
    return settings.get("model_type") == NAME


def config(settings: dict) -> dict:
    return fields(MambaConfig.from_dict(settings))


def fields(theirs) -> dict:
    require_silu(theirs)
    sizes = (theirs.intermediate_size, theirs.state_size, int(theirs.time_step_rank), theirs.conv_kernel)
    return {
        **without_attention(theirs, "mamba1"),
        **stock_mamba1(*sizes, theirs.use_conv_bias, theirs.use_bias),
    }


def layout(config) -> Layout:
    return Layout(BACKBONE)
