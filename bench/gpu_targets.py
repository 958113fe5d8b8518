"""Which of a results file's rows reach what the CUDA kernels are to reach: `python bench/gpu_targets.py FILE`.

At the headline shapes. A row that misses stays in the list with its number; so does one that was not measured.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from gpu_cases import HEADLINE, NO_LIVE, STEADY, Case, core_cases
from gpu_results import OURS, aligned, find, key, load


@dataclass(frozen=True)
class Target:
    """value(rows, row) of our best algorithm's row, or of the closed form's; None where it lacks a partner."""

    sentence: str
    batches: tuple[int, ...]
    windows: tuple[int, ...]
    contenders: tuple[str, ...]
    value: Callable
    least: float = 0
    most: float = math.inf
    mixes: tuple[str, ...] = (STEADY, NO_LIVE)

    def verdict(self, value):
        if value is None:
            return "not measured"
        return "reached" if self.least <= value <= self.most else "MISSED"


def share_of_copy(rows, row):
    return row["nbytes"] / row["us_median"] / 1e3 / row["copy_gb_per_s"]


def against(*rivals):
    """Speed over the fastest of the rivals."""

    def value(rows, row):
        found = [find(rows, row, contender=rival) for rival in rivals]
        times = [other["us_median"] for other in found if other]
        return min(times) / row["us_median"] if times else None

    return value


def over_one_token(rows, row):
    single = find(rows, row, ntokens=1)
    return single and row["us_median"] / single["us_median"]


def against_ring_or_copy(rows, row):
    """Whichever reaches its own mark by more: 1.2 times FlashInfer's ring, or 0.9 of the copy bandwidth."""
    ring = against("flashinfer ring")(rows, row)
    return max(share_of_copy(rows, row) / 0.9, (ring or 0) / 1.2)


FLASHINFER = ("flashinfer ring", "flashinfer mtp")
CLOSED = ("matmul",)
TARGETS = [
    Target("closed form: share of copy bandwidth >= 0.85", (64, 256), (4, 8), CLOSED, share_of_copy, least=0.85),
    # Not the steady mix: a session that keeps 3 tokens a step folds more often, alone 1.2 to 1.3 times the bytes.
    Target("closed form: 8 tokens over 1 <= 1.2", (64, 256), (8,), CLOSED, over_one_token, most=1.2, mixes=(NO_LIVE,)),
    Target("batch 1: us <= 5", (1,), (1, 4, 8), OURS, lambda rows, row: row["us_median"], most=5),
    Target("batch 1: speed over FlashInfer >= 1", (1,), (1, 4, 8), OURS, against(*FLASHINFER), least=1),
    Target(
        "speed over FlashInfer's ring / 1.2, or share of copy bandwidth / 0.9, >= 1",
        (8, 64, 256),
        (1, 4, 8),
        OURS,
        against_ring_or_copy,
        least=1,
    ),
    Target("speed over a state per token >= 2", (8, 64, 256), (4, 8), OURS, against("snapshot"), least=2),
]


def best(rows, case: Case, mix, contenders):
    """The fastest measured row of the contenders for one case and mix, or None."""
    shape = [case.shape.nheads, case.shape.headdim, case.shape.dstate, case.shape.ngroups]
    wanted = {name: getattr(case, name) for name in ("batch", "ntokens", "activations", "checkpoint")}
    found = [find(rows, {"shape": shape, "mix": mix, **wanted}, contender=contender) for contender in contenders]
    return min(filter(None, found), key=lambda row: row["us_median"], default=None)


def verdicts(data):
    """[target, case, value, "reached", "MISSED" or "not measured"] of every target and row it names."""
    rows = {key(row): row for row in data["rows"]}
    cases = [case for case in core_cases() if case.shape in HEADLINE and case.activations == "bfloat16"]
    for target in TARGETS:
        for case in cases:
            if case.batch not in target.batches or case.ntokens not in target.windows:
                continue
            for mix in target.mixes:
                row = best(rows, case, mix, target.contenders)
                value = row and target.value(rows, row)
                shown = "-" if value is None else f"{value:.2f}"
                yield [
                    target.sentence,
                    f"{case.id}, {mix}",
                    row["contender"] if row else "-",
                    shown,
                    target.verdict(value),
                ]


def main():
    found = list(verdicts(load(sys.argv[1])))
    counts = {verdict: [row[-1] for row in found].count(verdict) for verdict in ("reached", "MISSED", "not measured")}
    print("\n".join(aligned([["target", "row", "contender", "value", "verdict"], *found])))
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


if __name__ == "__main__":
    main()
