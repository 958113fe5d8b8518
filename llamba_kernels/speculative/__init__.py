"""Exact speculative decoding."""

from .decode import SpeculativeDecoder
from .drafts import Draft, Drafter, NoDraft, PromptLookup
from .model_draft import ModelDraft, first_layers
from .sampling import Sampling
from .stats import Generation, Stats

__all__ = [
    "Draft",
    "Drafter",
    "Generation",
    "ModelDraft",
    "NoDraft",
    "PromptLookup",
    "Sampling",
    "SpeculativeDecoder",
    "Stats",
    "first_layers",
]
