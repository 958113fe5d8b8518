"""How tokens are drawn: temperature, top-k, top-p, named and meant as in transformers' `generate`."""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

FLOAT = torch.finfo(torch.float32)
FIRST_LOOK = 64  # likeliest tokens that top-p looks at before it looks at more


@dataclass(frozen=True)
class Sampling:
    """The law that tokens are drawn from: softmax(logits / temperature) over the tokens that top-k and then top-p keep.

    Args:
        temperature: 0 is greedy, and then the others mean nothing.
        top_k: keep the k likeliest tokens and all that tie with the last of them; None or 0 keeps all.
        top_p: of those, renormalised, keep the fewest likeliest whose probability reaches top_p, and at least one; of
            tokens that tie at the border those with the highest ids. 1 keeps all.
    Raises: ValueError, TypeError.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self):
        self._check("temperature", "a number from 0 (greedy) up", Real, lambda t: 0.0 <= t < math.inf)
        self._check("top_p", "a number from 0 to 1", Real, lambda p: 0.0 <= p <= 1.0)
        if self.top_k is not None:
            self._check("top_k", "None or an int from 0 (all) up", Integral, lambda k: k >= 0)

    def _check(self, name: str, rule: str, kind: type, fits) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"Sampling: {name} must be {rule}; got {type(value).__name__}")
        if not fits(value):
            raise ValueError(f"Sampling: {name} must be {rule}; got {value}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def mask_(self, logits: Tensor) -> Tensor:
        """Set the tokens that are not kept to -inf, in place; logits: (rows, vocab), each by itself.

        Greedy decoding keeps all: the likeliest token is the same.
        """
        if self.greedy:
            return logits
        if self.top_k and self.top_k < logits.shape[-1]:
            logits.masked_fill_(logits < logits.topk(self.top_k).values[:, -1:], -math.inf)
        if self.top_p < 1.0:
            keep_most_likely_(logits, self.temperature, self.top_p)
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """The law of each row of logits that `mask_` has masked, float32. Greedy decoding has none."""
        return softmax(logits, self.temperature)


def softmax(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature), float32. The maximum goes first: any temperature then gives finite numbers."""
    wide = logits.float()
    wide = wide - wide.amax(-1, keepdim=True)
    return torch.softmax(wide.div_(min(max(temperature, FLOAT.tiny), FLOAT.max)), -1)


def keep_most_likely_(logits: Tensor, temperature: float, top_p: float) -> None:
    """Top-p, in place. Only as many tokens are ranked as are kept, in rounds: sorting a large vocabulary is slow."""
    vocab = logits.shape[-1]
    probabilities = softmax(logits, temperature)
    look = min(FIRST_LOOK, vocab)
    while True:
        ranked, tokens = logits.topk(look)  # [rows, look], descending
        mass = probabilities.gather(-1, tokens).double()
        keeps = mass.cumsum(-1) - mass < top_p  # a token is kept while those before it do not reach top_p
        if look == vocab or not keeps[:, -1].any():
            break
        look = min(8 * look, vocab)
    kept = keeps.sum(-1, keepdim=True).clamp_(min=1)
    last = ranked.gather(-1, kept - 1)  # the least logit that is kept
    # Of the tokens with that logit, topk has ranked first whichever it liked: which are kept must be a rule.
    ties = logits == last
    surplus = ties.sum(-1, keepdim=True) - (kept - (ranked > last).sum(-1, keepdim=True))
    logits.masked_fill_(logits < last, -math.inf)
    if surplus.any():
        logits.masked_fill_(ties & (ties.cumsum(-1) <= surplus), -math.inf)


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """A token of each row's law by inverse CDF: the first whose cumulative probability exceeds u times the total.

    probabilities: (rows, vocab) float32. uniforms: (rows) float64 in [0, 1). Returns (rows) int64.
    """
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    targets = uniforms.unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True).squeeze(-1).clamp_(max=probabilities.shape[-1] - 1)
