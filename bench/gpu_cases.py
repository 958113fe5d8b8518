"""Which rows the GPU benchmark measures, and the steps that each is a mix of. No torch."""

import itertools
import math
from dataclasses import dataclass

from traffic import ITEMSIZE, Shape

SHAPES = [
    Shape(*sizes)
    for sizes in (
        (128, 64, 128, 8),
        (80, 64, 128, 1),
        (64, 64, 128, 8),
        (16, 64, 128, 1),
        (96, 80, 128, 8),
        (256, 64, 128, 8),
        (48, 64, 128, 1),
        (24, 64, 128, 1),
    )
]
HEADLINE = SHAPES[:2]
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
WINDOWS = [1, 2, 4, 6, 8, 16]
DTYPES = [  # activations, checkpoint
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
]
ACCEPTED = 3  # tokens that a step keeps in the steady mix
STEADY, NO_LIVE, ANY = "steady", "no live rows", "any"  # mixes; ANY: the operator's step is always the same

# W of a session, until fold.py has measured costs of GPUs: every live row is issued again by the recurrent form, and
# costs the closed form next to nothing but its bytes.
FOLD_EVERY = {"recurrent": 4, "matmul": 16}


@dataclass(frozen=True)
class Case:
    shape: Shape
    batch: int
    ntokens: int
    activations: str
    checkpoint: str

    def __str__(self):
        return f"{self.shape}, batch {self.batch}, {self.ntokens} tokens, {self.checkpoint} checkpoint"

    @property
    def id(self) -> str:
        """For pytest's -k, as in -k "matmul and h128 and b64 and k4"."""
        dtype = self.checkpoint.replace("bfloat", "bf").replace("float", "fp")
        return f"{self.shape} b{self.batch} k{self.ntokens} {dtype}".replace(" ", "-")

    @property
    def accepted(self) -> int:
        return min(ACCEPTED, self.ntokens)

    @property
    def state_bytes(self) -> int:
        """Of all sequences."""
        return self.batch * self.shape.state_elements * ITEMSIZE[self.checkpoint]


def core_cases():
    """The rows of the suite: the headline shapes in breadth, of every other shape one row and its one-token row."""
    cases = [
        Case(*case)
        for case in itertools.chain.from_iterable(
            [(shape, batch, ntokens, *dtypes) for batch in (1, 8, 64, 256) for ntokens in (1, 4, 8)]
            for shape, dtypes in itertools.product(HEADLINE, DTYPES[:2])
        )
    ]
    for shape in SHAPES[len(HEADLINE) :]:
        cases += [Case(shape, 64, ntokens, *DTYPES[0]) for ntokens in (1, 4)]
    return cases + [Case(HEADLINE[0], 64, ntokens, *DTYPES[2]) for ntokens in (1, 4)]


def full_cases():
    return [
        Case(shape, batch, ntokens, *dtypes)
        for shape, dtypes, batch, ntokens in itertools.product(SHAPES, DTYPES, BATCHES, WINDOWS)
    ]


def phases(mix, fold_every, accepted):
    """The (live, fold) of a session's steps in turn, over one cycle, when every step keeps `accepted` tokens."""
    if mix == NO_LIVE:
        return [(0, 0)]
    period = fold_every // math.gcd(fold_every, accepted)
    positions = [(2 * fold_every + step) * accepted for step in range(period)]  # past the first fold
    checkpoints = [(position - accepted) // fold_every * fold_every for position in positions]
    return [
        (position - checkpoint, position // fold_every * fold_every - checkpoint)
        for position, checkpoint in zip(positions, checkpoints, strict=True)
    ]


def ring_phases(mix, window, ntokens, accepted):
    """The live rows of the steps of an operator that writes its state when live + ntokens > window, over one cycle.

    As in FlashInfer's checkpointing_ssu: the write folds all live rows, and the step's own tokens are the next ones.
    """
    if mix == NO_LIVE:
        return [0]
    live = [accepted]
    while live[-1] + ntokens <= window:
        live.append(live[-1] + accepted)
    return live
