"""Exact speculative decoding."""

from .decode import Generation, SpeculativeDecoder, Stats
from .drafts import Draft, PromptLookup

__all__ = ["Draft", "Generation", "PromptLookup", "SpeculativeDecoder", "Stats"]
