"""The costs that llamba_kernels/fold.py chooses W by: storing a state, taking it through one more token, rounding."""

import copy
import functools
import itertools
import statistics

import torch
from harness import Rows, seconds, wait_for_quiet

from llamba_kernels.cache import Session
from llamba_kernels.ops import mamba2_verify
from llamba_kernels.testing import make_mamba2_layer

PLACES = {"memory": (80, 24), "cache": (8, 6)}  # heads and layers: 63 MB and 1.6 MB of fp32 states in rotation
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SLOT, LIVE = torch.zeros(1, dtype=torch.int32), 8


def median_ns(nheads, nlayers, checkpoint_dtype, live, fold, round_every=LIVE):
    """Of a one-token step with so many live and folded rows; a 16-bit state is rounded after each round_every-th."""
    session = Session(max_window=8, fold_every=LIVE)
    first = make_mamba2_layer(1, nheads, 64, 128, checkpoint_dtype=checkpoint_dtype, session=session)
    first.cursor.reset(SLOT, torch.tensor([64 + live % LIVE], dtype=torch.int32))
    first.cursor.begin(SLOT, torch.ones(1, dtype=torch.int32))
    first.cursor.table[0, :3] = torch.tensor([64 + live, live, fold], dtype=torch.int32)
    xBC, dt = first.tokens(1, 1)
    steps = []
    for _ in range(nlayers):
        each = copy.copy(first)
        for name in ("checkpoint", "rows", "dt_rows"):
            setattr(each, name, torch.randn(getattr(first, name).shape).to(getattr(first, name).dtype))
        options = each.heads | {"fold_every": round_every, "out": torch.empty(1, 1, nheads, 64)}
        steps.append(functools.partial(mamba2_verify, *each.arguments(xBC, dt, SLOT), **options))
    rounds = max(8, 200 // nlayers) * nlayers
    seconds(lambda step: step(), steps, 2 * nlayers)
    return 1e9 * statistics.median(seconds(lambda step: step(), steps, rounds))


def bench_fold(request, benchmark):
    load = wait_for_quiet(30)

    def run():
        figures = {}
        for (place, sizes), dtype in itertools.product(PLACES.items(), DTYPES):
            each = [
                [median_ns(*sizes, dtype, *case) for case in ((0, 0), (LIVE, 0), (LIVE, LIVE), (LIVE, 0, 1))]
                for _ in range(3)
            ]
            figures[place, dtype] = [statistics.median(column) for column in zip(*each, strict=True)]
        return figures

    with torch.inference_mode():
        figures = benchmark.pedantic(run, rounds=1)
    columns = [
        "us no live rows",
        "us 8 live",
        "us 8 live, folded",
        "us 8 live, all rounded",
        "write",
        "replay",
        "round",
    ]
    table = [["states in, checkpoint dtype", *columns]]
    for (place, dtype), times in figures.items():
        base, live, folded, rounded = times
        kilo_elements = PLACES[place][0] * 64 * 128 / 1024
        costs = [folded - live, (live - base) / LIVE, (rounded - live) / LIVE]
        cells = [1e-3 * each for each in times] + [each / kilo_elements for each in costs]
        table.append([f"{place}, {str(dtype)[6:]}", *(f"{cell:.1f}" for cell in cells)])
    benchmark.extra_info.update(table=table, others_load=load)
    busy = " (beside other work)" if load >= 0.1 else ""
    request.config.stash[Rows.KEY].tables[f"costs of W, ns per 1024 state elements{busy}"] = table
