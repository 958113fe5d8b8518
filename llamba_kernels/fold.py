"""How often a session folds live rows into the checkpoints: its constant W, `Session.fold_every`, from measured costs.

A step of a layer costs base + write (if it folds) + replay x (live rows + new tokens). When every step accepts `a`
tokens, a + (W - 1) / 2 rows are live on average, and min(1, a / W) of the steps fold. A small W writes the state more
often, a large one replays more.
"""

from dataclasses import dataclass

import torch

LARGEST = 16  # rows are memory, and a checkpoint far behind makes every other step slower


@dataclass(frozen=True)
class Costs:
    """Nanoseconds per 1024 state elements, on all threads that were measured."""

    write: float  # store a state that has been read
    replay: float  # take it through one more token


# Measured by `pytest bench/bench_mamba2_verify.py --benchmark` (rows "live .. fold ..") on 2 cores of an AMD EPYC with
# AVX-512; "cache": the checkpoints of all layers fit a core's share of the last cache, "memory": they do not.
COSTS = {
    ("cpu", "mamba2", torch.float32, "memory"): Costs(write=40.0, replay=16.0),
    ("cpu", "mamba2", torch.float32, "cache"): Costs(write=8.0, replay=16.0),
    ("cpu", "mamba2", torch.bfloat16, "memory"): Costs(write=20.0, replay=16.0),
    ("cpu", "mamba2", torch.bfloat16, "cache"): Costs(write=4.0, replay=16.0),
    ("cpu", "mamba2", torch.float16, "memory"): Costs(write=20.0, replay=16.0),
    ("cpu", "mamba2", torch.float16, "cache"): Costs(write=4.0, replay=16.0),
}
CACHE_BYTES = 16 << 20


def extra_cost(fold_every: int, accepted: float, costs: Costs) -> float:
    """What W costs a step that accepts so many tokens, above what every step costs; nanoseconds per 1024 elements."""
    return costs.write * min(1.0, accepted / fold_every) + costs.replay * (fold_every - 1) / 2


def choose_fold_every(
    device: str, layer: str, checkpoint_dtype: torch.dtype, checkpoint_bytes: int, max_window: int
) -> int:
    """The W of a session. A pure function of these arguments: never of the tokens or the batch of a step.

    Args:
        device: "cpu". layer: "mamba2". checkpoint_dtype: float32, bfloat16 or float16.
        checkpoint_bytes: of all layers and slots together.
        max_window: most tokens in a step. Sessions accept from 1 token a step, when drafts fail, to nearly all of them;
            the W with the least sum over 1 and three quarters of max_window is taken.
    """
    place = "cache" if checkpoint_bytes <= CACHE_BYTES else "memory"
    costs = COSTS.get((device, layer, checkpoint_dtype, place))
    if costs is None:
        known = ", ".join(sorted({f"{d} {kind} {str(dtype)[6:]}" for d, kind, dtype, _ in COSTS}))
        asked = f"{device} {layer} {str(checkpoint_dtype).removeprefix('torch.')}"
        raise ValueError(f"choose_fold_every: costs must be known for one of {known}; got {asked}")
    most = max(1.0, 0.75 * max_window)
    return min(
        range(1, LARGEST + 1),
        key=lambda fold_every: extra_cost(fold_every, 1.0, costs) + extra_cost(fold_every, most, costs),
    )


def describe() -> str:
    """The function as a table: W by what it depends on."""
    lines = ["device layer   checkpoint  where    W at max_window 1  2  4  8"]
    for device, layer, dtype, place in COSTS:
        nbytes = CACHE_BYTES + (place == "memory")
        chosen = [choose_fold_every(device, layer, dtype, nbytes, window) for window in (1, 2, 4, 8)]
        cells = "".join(f"{fold_every:3d}" for fold_every in chosen)
        lines.append(f"{device:6s} {layer:7s} {str(dtype)[6:]:11s} {place:8s} {'':15s}{cells}")
    return "\n".join(lines)
