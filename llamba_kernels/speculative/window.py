"""What one step works on: the running sequences, and the windows of tokens that it verifies."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .request import Request
from .stats import Stats


@dataclass
class Running:
    """One sequence on its way."""

    prompt: list[int]
    generator: torch.Generator
    stats: Stats
    slot: int = -1
    tokens: list[int] = field(default_factory=list)  # emitted; the last is pending: not in the cache yet
    rows: list[Tensor] = field(default_factory=list)  # the logits that decided them, a tensor per step
    ended: str = ""
    shared: dict[str, float] = field(default_factory=dict)  # the decoder's seconds when this sequence started

    def append(self, tokens: list[int], request: Request) -> list[int]:
        """Add tokens until one ends the sequence; returns those that it has got."""
        for i, token in enumerate(tokens, start=1):
            self.tokens.append(token)
            self.ended = request.ending(self.tokens)
            if self.ended:
                return tokens[:i]
        return tokens

    def uniforms(self, count: int) -> list[float]:
        """Its own random numbers, so that neighbours do not change them."""
        return torch.rand(count, generator=self.generator, dtype=torch.float64).tolist()


@dataclass
class Window:
    """The tokens that a step verifies, one row per running sequence."""

    drafts: list[list[int]]
    slots: Tensor  # (batch) int32
    ntokens: Tensor  # (batch) int32, the pending token and the drafts
    tokens: Tensor  # (batch, window) int64, padded with 0
    draft_probs: Tensor | None  # (batch, window - 1, vocab) float32; None: the drafts were certain
    uniforms: Tensor | None  # (batch, window) float64: of each draft, and last of the token that follows; None: greedy

    @classmethod
    def of(
        cls,
        running: list[Running],
        drafts: list[list[int]],
        draft_probs: Tensor | None,
        uniforms: list[list[float]] | None,
    ) -> "Window":
        """uniforms: of each sequence at least one for each draft, and then one more."""
        window = 1 + max(map(len, drafts))
        if draft_probs is not None:
            draft_probs = draft_probs[: len(running), : window - 1]
        if uniforms is not None:
            columns = [
                u[: len(d)] + [0.0] * (window - 1 - len(d)) + u[-1:] for u, d in zip(uniforms, drafts, strict=True)
            ]
            uniforms = padded(columns, window, torch.float64)
        return cls(
            drafts,
            slots=int32([each.slot for each in running]),
            ntokens=int32([1 + len(each) for each in drafts]),
            tokens=padded([[each.tokens[-1], *d] for each, d in zip(running, drafts, strict=True)], window),
            draft_probs=draft_probs,
            uniforms=uniforms,
        )


def padded(rows: list[list], width: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """(rows, width), with zeros on the right."""
    filler = [0] * width
    return torch.tensor([row + filler[len(row) :] for row in rows], dtype=dtype)


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
