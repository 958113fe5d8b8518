"""Falcon-Mamba: Mamba with an RMSNorm without weights on dt, B and C."""

from transformers import FalconMambaConfig

from . import mamba
from .layout import BACKBONE, Layout

NAME = "falcon_mamba"


def matches(settings: dict) -> bool:
    return settings.get("model_type") == NAME


def config(settings: dict) -> dict:
    theirs = FalconMambaConfig.from_dict(settings)
    return {**mamba.fields(theirs), "mamba1_inner_norm": "plain", "mamba1_inner_norm_eps": theirs.mixer_rms_eps}


def layout(config) -> Layout:
    return Layout(BACKBONE)
