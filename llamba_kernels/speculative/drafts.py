"""Where drafted tokens come from."""

from collections.abc import Sequence
from typing import Protocol


class Draft(Protocol):
    """Proposes tokens for one sequence. Proposals are certain: their draft probability is one-hot."""

    def reset(self, context: Sequence[int]) -> None:
        """Start a sequence whose tokens so far are `context`, the pending token included."""

    def extend(self, tokens: Sequence[int]) -> None:
        """Tokens that decoding has just added to the sequence."""

    def propose(self, most: int) -> list[int]:
        """At most `most` token ids that may follow; an empty list is fine. Anything else ends the generation."""


class PromptLookup:
    """Copies what followed the last occurrence of the context's final n-gram (Saxena 2023, "prompt lookup decoding").

    Longer n-grams are tried first. An index from n-gram to where it last ended keeps a proposal O(max_ngram).
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1):
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"PromptLookup: min_ngram must be 1 to max_ngram = {max_ngram}; got {min_ngram}")
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self.reset([])

    def reset(self, context: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self.ends: dict[tuple[int, ...], int] = {}  # n-gram -> index just after it, its last occurrence but the final
        self.extend(context)

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
