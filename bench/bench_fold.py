"""The costs that llamba_kernels/fold.py chooses W by: storing a state, taking it through one more token, rounding."""

import functools
import itertools
import math
import statistics

import torch
from harness import Rows, seconds, wait_for_quiet

from llamba_kernels.cache import Session
from llamba_kernels.ops import mamba1_verify, mamba2_verify
from llamba_kernels.testing import make_mamba2_layer
from llamba_kernels.testing_mamba1 import make_mamba1_layer

# Shape of a state and layers: 63 MB and 1.6 MB of fp32 states in rotation; Mamba-1 beside as much of A.
PLACES = {
    "mamba2": {"memory": ((80, 64, 128), 24), "cache": ((8, 64, 128), 6)},
    "mamba1": {"memory": ((5120, 16), 96), "cache": ((2560, 16), 6)},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SLOT, LIVE = torch.zeros(1, dtype=torch.int32), 4


CASES = [(0, 0, LIVE), (LIVE, 0, LIVE), (LIVE, LIVE, LIVE), (LIVE, 0, 1)]  # live rows, folded rows, rounded every


def medians_ns(shape, nlayers, checkpoint_dtype):
    """Of a one-token step of each case; they take turns on the same states, so that all meet the same memory."""
    states = [torch.randn(1, *shape).to(checkpoint_dtype) for _ in range(nlayers)]
    make_step = make_mamba2_step if len(shape) == 3 else make_mamba1_step
    steps = [[make_step(state, *case) for state in states] for case in CASES]
    times = [[] for _ in CASES]
    for _ in range(max(24, 480 // nlayers)):
        for each, collected in zip(steps, times, strict=True):
            collected += seconds(lambda step: step(), each, nlayers)
    return [1e9 * statistics.median(each) for each in times]


def open_step(layer, state, live, fold):
    layer.cursor.begin(SLOT, torch.ones(1, dtype=torch.int32))
    layer.cursor.table[0, :3] = torch.tensor([64 + live, live, fold], dtype=torch.int32)
    layer.checkpoint = state
    for name in ("rows", "x_rows", "dt_rows", "B_rows"):
        if hasattr(layer, name):
            getattr(layer, name).normal_()


def make_mamba2_step(state, live, fold, round_every):
    layer = make_mamba2_layer(1, state.shape[1], 64, 128, session=Session(max_window=8, fold_every=LIVE))
    open_step(layer, state, live, fold)
    options = layer.heads | {"fold_every": round_every, "out": torch.empty(1, 1, *state.shape[1:3])}
    return functools.partial(mamba2_verify, *layer.arguments(*layer.tokens(1, 1), SLOT), **options)


def make_mamba1_step(state, live, fold, round_every):
    layer = make_mamba1_layer(1, state.shape[1], session=Session(max_window=8, fold_every=LIVE))
    open_step(layer, state, live, fold)
    options = layer.heads | {"fold_every": round_every, "out": torch.empty(1, 1, state.shape[1])}
    return functools.partial(mamba1_verify, *layer.arguments(layer.tokens(1, 1), SLOT), **options)


def bench_fold(request, benchmark):
    load = wait_for_quiet(30)

    def run():
        figures = {}
        for kind, dtype in itertools.product(PLACES, DTYPES):
            for place, sizes in PLACES[kind].items():
                each = [medians_ns(*sizes, dtype) for _ in range(3)]
                figures[kind, place, dtype] = [statistics.median(column) for column in zip(*each, strict=True)]
        return figures

    with torch.inference_mode():
        figures = benchmark.pedantic(run, rounds=1)
    columns = [
        "us no live rows",
        "us 4 live",
        "us 4 live, folded",
        "us 4 live, all rounded",
        "write",
        "replay",
        "round",
    ]
    table = [["layer, states in, checkpoint dtype", *columns]]
    for (kind, place, dtype), times in figures.items():
        base, live, folded, rounded = times
        kilo_elements = math.prod(PLACES[kind][place][0]) / 1024
        costs = [folded - live, (live - base) / LIVE, (rounded - live) / LIVE]
        cells = [1e-3 * each for each in times] + [each / kilo_elements for each in costs]
        table.append([f"{kind}, {place}, {str(dtype)[6:]}", *(f"{cell:.1f}" for cell in cells)])
    benchmark.extra_info.update(table=table, others_load=load)
    busy = " (beside other work)" if load >= 0.1 else ""
    request.config.stash[Rows.KEY].tables[f"costs of W, ns per 1024 state elements{busy}"] = table
