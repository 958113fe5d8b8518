"""mamba1_verify as a server decodes: 24 layers' states in rotation, one cursor, steps that are committed.

So live rows and folds come as they do at each W (fold_every). The contenders take turns, a step of 24 layers each, in
one run; a figure is the mean over the steps of the least (or the median) of the 24 layers. Beside them: the step that
stock decoding makes, written for this comparison (eager_mamba1_step.cpp). Every layer has an A of its own.
An operator that is called through torch spends some 8 us on arguments and checks, a quarter of such a step; a decoding
model replays its calls from a capture, past torch, as the eager step is called, too: the rows "replayed".
"""

import copy
import functools
import statistics

import pytest
import torch
from bench_mamba2_mix import timed
from eager import EagerMamba1Step
from harness import Rows, read_bandwidth, wait_for_quiet

from llamba_kernels.cache import Session
from llamba_kernels.capture import Capture
from llamba_kernels.fold import choose_fold_every
from llamba_kernels.ops import mamba1_verify
from llamba_kernels.testing_mamba1 import make_mamba1_layer

NLAYERS, STEPS, MAX_WINDOW, DSTATE = 24, 48, 4, 16
SHAPES = {"d5120 n16": 5120, "d1536 n16": 1536}  # Mamba-2.8b, Mamba-130m
DTYPES = [torch.float32, torch.bfloat16]
SLOT = torch.zeros(1, dtype=torch.int32)
COLUMNS = ["case", "us min", "us median", "per step / eager", "per token / one-token call"]


class Verify:
    """24 layers that share a cursor; a call is one step of ntokens tokens, of which `accepted` stay."""

    def __init__(self, d_inner, checkpoint_dtype, ntokens, accepted, fold_every, replayed=False):
        session = Session(max_window=MAX_WINDOW, fold_every=fold_every)
        first = make_mamba1_layer(1, d_inner, DSTATE, checkpoint_dtype=checkpoint_dtype, session=session)
        self.cursor, tokens = first.cursor, first.tokens(1, ntokens)
        self.counts = [torch.tensor([value], dtype=torch.int32) for value in (ntokens, accepted)]
        options = first.heads | {"fold_every": fold_every, "out": torch.empty(1, ntokens, d_inner)}
        self.layers = []
        for _ in range(NLAYERS):
            each = copy.copy(first)
            each.parameters = {name: value.clone() for name, value in first.parameters.items()}
            for name in first.BUFFERS:
                setattr(each, name, getattr(first, name).clone())
            self.layers.append(functools.partial(mamba1_verify, *each.arguments(tokens, SLOT), **options))
        for _ in range(8):  # past the first folds
            self()
        if replayed:
            self.cursor.begin(SLOT, self.counts[0])
            self.layers = [Capture(layer, held=layer).replay for layer in self.layers]
            self.cursor.commit(SLOT, self.counts[1])

    def __call__(self):
        self.cursor.begin(SLOT, self.counts[0])
        times = [timed(layer) for layer in self.layers]
        self.cursor.commit(SLOT, self.counts[1])
        return times


def eager(d_inner):
    """A step of the eager kernel, which gives the bits of mamba1_verify: checked on the way."""
    one, models = torch.ones(1, dtype=torch.int32), []
    for _ in range(NLAYERS):
        models.append(make_mamba1_layer(1, d_inner, DSTATE, session=Session()))
    out = torch.empty(d_inner)
    steps = [EagerMamba1Step(model, torch.zeros(d_inner, DSTATE), out) for model in models]
    for _ in range(5):
        tokens = models[0].tokens(1, 1)
        models[0].cursor.begin(SLOT, one)
        expected = models[0].verify(tokens, SLOT)[0, 0]
        models[0].cursor.commit(SLOT, one)
        steps[0](tokens)
        assert torch.equal(out, expected)
    return lambda: [timed(step, tokens) for step in steps]


@pytest.mark.parametrize("checkpoint_dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_mamba1_mix(request, benchmark, shape, checkpoint_dtype):
    d_inner = SHAPES[shape]
    state_bytes = NLAYERS * d_inner * DSTATE * checkpoint_dtype.itemsize
    shipped = choose_fold_every("cpu", "mamba1", checkpoint_dtype, state_bytes, MAX_WINDOW)
    contenders = {"eager step, fp32 state": eager(d_inner)}
    for fold_every in sorted({1, 2, 4, shipped}):
        name = f"W {fold_every}{' (shipped)' if fold_every == shipped else ''}"
        for replayed in (False, True) if fold_every == shipped else (False,):
            contenders |= {
                f"{name}: {ntokens} tokens, {accepted} accepted{', replayed' if replayed else ''}": Verify(
                    d_inner, checkpoint_dtype, ntokens, accepted, fold_every, replayed
                )
                for ntokens, accepted in ((1, 1), (4, 3), (4, 4))
            }

    def run():
        steps = {name: [] for name in contenders}
        for _ in range(STEPS):
            for name, step in contenders.items():
                times = step()
                steps[name].append((min(times), statistics.median(times)))
        return {
            name: [1e6 * statistics.mean(column) for column in zip(*each, strict=True)] for name, each in steps.items()
        }

    rows, load = request.config.stash[Rows.KEY], wait_for_quiet(30)
    with torch.inference_mode():
        figures = benchmark.pedantic(run, rounds=1)
    eager_us, one_token, table = figures["eager step, fp32 state"], None, [COLUMNS]
    for name, times in figures.items():
        ntokens = int(name.split(": ")[1][0]) if name.startswith("W") else 1
        one_token = times if ntokens == 1 else one_token
        ratios = [
            " ".join(f"{ours / other:.2f}" for ours, other in zip(times, others, strict=True))
            for others in (eager_us, [ntokens * each for each in one_token])
        ]
        table.append([name, *(f"{each:.1f}" for each in times), *ratios])
    benchmark.extra_info.update(
        figures=figures, shipped=shipped, read_gb_per_s=read_bandwidth() / 1e9, others_load=load
    )
    busy = " (beside other work)" if load >= 0.1 else ""
    title = f"mamba1_verify, {NLAYERS} layers in rotation, {shape}, {str(checkpoint_dtype)[6:]} state{busy}"
    rows.tables[title] = table
