"""Distil a Llama into a Mamba-2 hybrid, in stages; each reads Hugging Face folders and writes one."""

from .align import align
from .convert import convert
from .distill import distill
from .evaluate import evaluate
from .rank import rank_layers
from .teacher import fetch_teacher
from .tune import tune

__all__ = ["align", "convert", "distill", "evaluate", "fetch_teacher", "rank_layers", "tune"]
