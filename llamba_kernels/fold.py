"""How often a session folds live rows into the checkpoints: its constant W, `Session.fold_every`, from measured costs.

A step of a layer costs base + write (if it folds) + replay x (live rows + new tokens) + round x (those of them whose
position is a multiple of W; 16-bit checkpoints only). When every step accepts `a` tokens, a + (W - 1) / 2 rows are live
on average, and min(1, a / W) of the steps fold. A small W writes and rounds the state more often, a large one replays
more.
"""

from dataclasses import dataclass

import torch

LARGEST = 16  # rows are memory, and a checkpoint far behind makes every other step slower


@dataclass(frozen=True)
class Costs:
    """Nanoseconds per 1024 state elements, on all threads that were measured."""

    write: float  # store a state that has been read
    replay: float  # take it through one more token
    round: float  # to the checkpoint's dtype, in registers


# Measured by `pytest bench/bench_fold.py --benchmark` on 2 cores of an AMD EPYC with AVX-512, medians of three runs.
# "cache": the checkpoints of all layers fit the nearer caches; "memory": they do not.
COSTS = {
    ("cpu", "mamba2", torch.float32, "memory"): Costs(write=9.6, replay=3.7, round=0.0),
    ("cpu", "mamba2", torch.float32, "cache"): Costs(write=9.7, replay=4.5, round=0.0),
    ("cpu", "mamba2", torch.bfloat16, "memory"): Costs(write=21.5, replay=13.6, round=13.8),
    ("cpu", "mamba2", torch.bfloat16, "cache"): Costs(write=19.5, replay=11.6, round=13.0),
    ("cpu", "mamba2", torch.float16, "memory"): Costs(write=8.4, replay=12.1, round=7.5),
    ("cpu", "mamba2", torch.float16, "cache"): Costs(write=6.6, replay=11.1, round=8.1),
    # Mamba-1 takes an exponential for each element and token. One core, beside other work.
    ("cpu", "mamba1", torch.float32, "memory"): Costs(write=9.9, replay=161.0, round=0.0),
    ("cpu", "mamba1", torch.float32, "cache"): Costs(write=6.5, replay=147.0, round=0.0),
    ("cpu", "mamba1", torch.bfloat16, "memory"): Costs(write=80.0, replay=188.0, round=57.0),
    ("cpu", "mamba1", torch.bfloat16, "cache"): Costs(write=87.0, replay=169.0, round=56.0),
    ("cpu", "mamba1", torch.float16, "memory"): Costs(write=6.1, replay=173.0, round=34.0),
    ("cpu", "mamba1", torch.float16, "cache"): Costs(write=28.0, replay=155.0, round=38.0),
}
CACHE_BYTES = 16 << 20


def extra_cost(fold_every: int, ntokens: float, accepted: float, costs: Costs) -> float:
    """What W costs a step above what every step costs; nanoseconds per 1024 elements."""
    waiting = (fold_every - 1) / 2  # live rows that the last step left, on average
    rounded = (accepted + waiting + ntokens) / fold_every
    return costs.write * min(1.0, accepted / fold_every) + costs.replay * waiting + costs.round * rounded


def choose_fold_every(
    device: str, layer: str, checkpoint_dtype: torch.dtype, checkpoint_bytes: int, max_window: int
) -> int:
    """`choose_fold_every_of` layers of one kind."""
    return choose_fold_every_of(device, {layer: checkpoint_bytes}, checkpoint_dtype, max_window)


def choose_fold_every_of(
    device: str, checkpoint_bytes: dict[str, int], checkpoint_dtype: torch.dtype, max_window: int
) -> int:
    """The W of a session. A pure function of these arguments: never of the tokens or the batch of a step.

    Args:
        device: "cpu". checkpoint_dtype: float32, bfloat16 or float16.
        checkpoint_bytes: by kind of layer, "mamba1" or "mamba2", of all layers and slots together. Each kind counts as
            much as it has bytes; if none has any, W is 1.
        max_window: most tokens in a step. Steps go from one token to max_window of which three quarters are accepted;
            the W with the least sum over these two is taken.
    """
    total = sum(checkpoint_bytes.values())
    place = "cache" if total <= CACHE_BYTES else "memory"
    kinds = [
        (nbytes / total, _costs(device, layer, checkpoint_dtype, place))
        for layer, nbytes in checkpoint_bytes.items()
        if nbytes
    ]

    def both(fold_every):
        accepted = max(1.0, 0.75 * max_window)
        return sum(
            share * (extra_cost(fold_every, 1, 1.0, costs) + extra_cost(fold_every, max_window, accepted, costs))
            for share, costs in kinds
        )

    return min(range(1, LARGEST + 1), key=both)


def _costs(device: str, layer: str, checkpoint_dtype: torch.dtype, place: str) -> Costs:
    costs = COSTS.get((device, layer, checkpoint_dtype, place))
    if costs is None:
        known = ", ".join(sorted({f"{d} {kind} {str(dtype)[6:]}" for d, kind, dtype, _ in COSTS}))
        asked = f"{device} {layer} {str(checkpoint_dtype).removeprefix('torch.')}"
        raise ValueError(f"choose_fold_every: costs must be known for one of {known}; got {asked}")
    return costs


def describe() -> str:
    """The function as a table: W by what it depends on."""
    lines = ["device layer   checkpoint  where    W at max_window 1  2  4  8"]
    for device, layer, dtype, place in COSTS:
        nbytes = CACHE_BYTES + (place == "memory")
        chosen = [choose_fold_every(device, layer, dtype, nbytes, window) for window in (1, 2, 4, 8)]
        cells = "".join(f"{fold_every:3d}" for fold_every in chosen)
        lines.append(f"{device:6s} {layer:7s} {str(dtype)[6:]:11s} {place:8s} {'':15s}{cells}")
    return "\n".join(lines)
