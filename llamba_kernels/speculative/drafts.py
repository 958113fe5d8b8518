"""Where drafted tokens come from: any code that proposes tokens for one sequence, or a model for all of them.

The decoder talks to a `Drafter`, which drafts for all sequences of a batch at once. `open_drafter` makes one of what a
user gives: a `Draft`, a function that makes a `Draft` for each sequence, or a `BatchDraft`, such as model_draft.py's.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from .sampling import Sampling


class Draft(Protocol):
    """Proposes tokens for one sequence. Proposals are certain: their draft probability is one-hot."""

    def reset(self, prompt: Sequence[int]) -> None:
        """Start a sequence with this prompt."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that decoding has just added to the sequence, at least one before every proposal."""

    def propose(self, most: int) -> list[int]:
        """At most `most` token ids that may follow; an empty list is fine. Anything else ends the generation."""


class Drafter(Protocol):
    """Drafts for the slots of a decoder."""

    def reset(self, slots: list[int], prompt: list[int]) -> None:
        """Each of these slots starts a sequence with this prompt."""

    def extend(self, slot: int, tokens: list[int]) -> None:
        """As `Draft.extend`."""

    def propose(
        self, slots: list[int], most: list[int], sampling: Sampling, uniforms: Tensor | None
    ) -> tuple[list[list[int]], Tensor | None]:
        """Drafts of each slot, at most `most` of them, and the probabilities that they were drawn with.

        sampling: of the target; a draft that draws its tokens draws them by it, too. uniforms: (slots, max(most))
        float64 in [0, 1) to draw them by, None if greedy.
        Returns the drafts, and (slots, at least max(most), vocab) float32, valid until the next call, or None: the
        drafts are certain.
        """


class BatchDraft(Protocol):
    """Drafts for a whole batch, with buffers that fit a decoder."""

    def open(self, batch: int, window: int, max_tokens: int) -> Drafter:
        """For slots 0 to batch - 1, at most window - 1 drafts at once and sequences of up to max_tokens."""


class PerSequence:
    """The Drafter of one Draft for each slot."""

    def __init__(self, drafts: list[Draft]):
        self.drafts = drafts

    def reset(self, slots, prompt):
        for slot in slots:
            self.drafts[slot].reset(prompt)

    def extend(self, slot, tokens):
        self.drafts[slot].extend(tokens)

    def propose(self, slots, most, sampling, uniforms):
        return [self.drafts[slot].propose(count) for slot, count in zip(slots, most, strict=True)], None


class NoDraft:
    """Proposes nothing: plain decoding."""

    def reset(self, prompt: Sequence[int]) -> None:
        pass

    def extend(self, tokens: Sequence[int]) -> None:
        pass

    def propose(self, most: int) -> list[int]:
        return []


class PromptLookup:
    """Copies what followed the last occurrence of the context's final n-gram (Saxena 2023, "prompt lookup decoding").

    Longer n-grams are tried first. An index from n-gram to where it last ended keeps a proposal O(max_ngram).
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1):
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"PromptLookup: min_ngram must be 1 to max_ngram = {max_ngram}; got {min_ngram}")
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self.reset([])

    def reset(self, prompt: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self.ends: dict[tuple[int, ...], int] = {}  # n-gram -> index just after it, its last occurrence but the final
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            # n-grams that end here become findable only now that something follows them
            end = len(self.tokens)
            for size in self.sizes:
                if size <= end:
                    self.ends[tuple(self.tokens[end - size :])] = end
            self.tokens.append(token)

    def propose(self, most: int) -> list[int]:
        for size in self.sizes:
            if size <= len(self.tokens):
                found = self.ends.get(tuple(self.tokens[-size:]))
                if found is not None:
                    return self.tokens[found : found + most]
        return []


def open_drafter(draft: Draft | Callable[[], Draft] | BatchDraft, batch: int, window: int, max_tokens: int) -> Drafter:
    """The Drafter of a decoder with these buffers; refused if `draft` is none of what the decoder's docstring names."""
    if hasattr(draft, "open") and not isinstance(draft, type):
        return draft.open(batch, window, max_tokens)
    if isinstance(draft, type) or not hasattr(draft, "propose"):
        if not callable(draft) or isinstance(draft, nn.Module):  # a model can be called, but makes no Draft
            raise TypeError(
                "SpeculativeDecoder: draft must be a Draft, a function that makes one, or a ModelDraft; "
                f"got {type(draft).__name__}"
            )
        return PerSequence([draft() for _ in range(batch)])
    if batch > 1:
        raise ValueError(
            "SpeculativeDecoder: draft must be a ModelDraft, or a function that makes a Draft for each sequence (such "
            f"as the class PromptLookup), when batch is above 1; got one {type(draft).__name__} and batch = {batch}"
        )
    return PerSequence([draft])
