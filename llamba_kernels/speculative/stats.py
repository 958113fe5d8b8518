"""What a generation gives, and what it took."""

import time
from dataclasses import dataclass, field

from torch import Tensor

PARTS = ("prefill", "draft", "verify", "accept")


@dataclass
class Stats:
    """What one generation did, or all those of a call together; times in seconds.

    A step that several sequences share takes each of them its whole time; together they count it once.
    """

    sequences: int = 1
    prompt_tokens: int = 0
    tokens: int = 0  # emitted
    steps: int = 0  # verify steps, of each sequence
    drafted: int = 0
    accepted_drafts: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))

    @property
    def decode_seconds(self) -> float:
        return sum(self.seconds.values()) - self.seconds["prefill"]

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed; the prompt and the token that its prefill yields are left out."""
        return self._decoded / self.decode_seconds if self._decoded else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted per verify step of a sequence, 1 to window."""
        return self._decoded / self.steps if self.steps else 0.0

    @property
    def _decoded(self) -> int:
        return self.tokens - self.sequences

    def timed(self, part: str) -> "_Timer":
        """Adds the time of a with-block to a part."""
        return _Timer(self.seconds, part)


class _Timer:
    """As a class: contextlib's generator costs 2 us, several times a step."""

    def __init__(self, seconds: dict[str, float], part: str):
        self.seconds, self.part = seconds, part

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        self.seconds[self.part] += time.perf_counter() - self.start


@dataclass
class Generation:
    """One sequence's output.

    Args:
        tokens: emitted ids, without the prompt; an end-of-sequence token, or the end of a stop string, is the last.
        logits: (tokens, vocab) in the model's dtype, if they were asked for: row i decided token i, before temperature,
            top-k and top-p.
        ended: "eos", "stop" or "length", which is max_new_tokens.
    """

    tokens: list[int]
    stats: Stats
    logits: Tensor | None = None
    ended: str = ""
