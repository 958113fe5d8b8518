"""mamba2_verify as a server decodes: 24 layers' states in rotation, one cursor, steps that are committed.

So live rows and folds come as they do at each W (fold_every). The contenders take turns, a step of 24 layers each, in
one run; a figure is the mean over the steps of the least (or the median) of the 24 layers. Beside them: the step that
stock decoding makes, written for this comparison (eager_mamba2_step.cpp), and vLLM's CPU operator, which has no conv.
"""

import copy
import functools
import statistics
import time

import pytest
import torch
from eager import EagerStep
from harness import Rows, read_bandwidth, wait_for_quiet
from peers import vllm

from llamba_kernels.cache import Session
from llamba_kernels.fold import choose_fold_every
from llamba_kernels.ops import mamba2_verify
from llamba_kernels.testing import make_mamba2_layer

NLAYERS, STEPS, MAX_WINDOW = 24, 48, 4
SHAPES = {
    "h80 d64 n128": dict(nheads=80, headdim=64, dstate=128),
    "h32 d64 n64": dict(nheads=32, headdim=64, dstate=64),
}
DTYPES = [torch.float32, torch.bfloat16]
SLOT = torch.zeros(1, dtype=torch.int32)


class Verify:
    """24 layers that share a cursor; a call is one step of ntokens tokens, of which `accepted` stay."""

    def __init__(self, layer, ntokens, accepted, fold_every):
        session = Session(max_window=MAX_WINDOW, fold_every=fold_every)
        first = make_mamba2_layer(1, **layer, session=session)
        self.cursor, tokens = first.cursor, first.tokens(1, ntokens)
        self.counts = [torch.tensor([value], dtype=torch.int32) for value in (ntokens, accepted)]
        options = first.heads | {"fold_every": fold_every}
        options["out"] = torch.empty(1, ntokens, *first.checkpoint.shape[1:3])
        self.layers = []
        for _ in range(NLAYERS):
            each = copy.copy(first)
            for name in ("checkpoint", "rows", "dt_rows"):
                setattr(each, name, getattr(first, name).clone())
            self.layers.append(functools.partial(mamba2_verify, *each.arguments(*tokens, SLOT), **options))
        for _ in range(8):  # past the first folds
            self()

    def __call__(self):
        self.cursor.begin(SLOT, self.counts[0])
        times = [timed(layer) for layer in self.layers]
        self.cursor.commit(SLOT, self.counts[1])
        return times


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def eager(layer):
    """A step of the eager kernel, which gives the bits of mamba2_verify: checked on the way."""
    one = torch.ones(1, dtype=torch.int32)
    model, out = make_mamba2_layer(1, **layer, session=Session()), torch.empty(layer["nheads"], layer["headdim"])
    steps = [EagerStep(model, torch.zeros(model.checkpoint.shape[1:]), out) for _ in range(NLAYERS)]
    for _ in range(5):
        tokens = model.tokens(1, 1)
        model.cursor.begin(SLOT, one)
        expected = model.verify(*tokens, SLOT)[0, 0]
        model.cursor.commit(SLOT, one)
        steps[0](*tokens)
        assert torch.equal(out, expected)
    return lambda: [timed(step, *tokens) for step in steps]


def vllm_step(layer, dtype):
    """vLLM's selective_state_update_cpu for one token of each layer, or None."""
    nheads, headdim, dstate = layer["nheads"], layer["headdim"], layer["dstate"]
    states = [torch.zeros(1, nheads, headdim, dstate, dtype=dtype) for _ in range(NLAYERS)]
    x, B, C = torch.randn(1, nheads, headdim), torch.randn(1, 1, dstate), torch.randn(1, 1, dstate)
    dt, D, bias = (torch.rand(*shape, 1).expand(*shape, headdim) for shape in ((1, nheads), (nheads,), (nheads,)))
    A, out = -torch.rand(nheads, 1, 1).expand(nheads, headdim, dstate), torch.empty(1, nheads, headdim)

    def call(ops, state):
        arguments = (x, dt, A, B, C, D, None, bias, True, None, None, -1, out, None, None)
        ops.selective_state_update_cpu(state, *arguments)

    peer = vllm(call)
    return peer and (lambda: [timed(peer[1], state) for state in states])


@pytest.mark.parametrize("checkpoint_dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_mamba2_mix(request, benchmark, shape, checkpoint_dtype):
    sizes = SHAPES[shape]
    state_bytes = sizes["nheads"] * sizes["headdim"] * sizes["dstate"] * checkpoint_dtype.itemsize
    shipped = choose_fold_every("cpu", "mamba2", checkpoint_dtype, NLAYERS * state_bytes, MAX_WINDOW)
    layer = sizes | {"checkpoint_dtype": checkpoint_dtype}
    contenders = {"eager step, fp32 state": eager(sizes), "vLLM step, no conv": vllm_step(sizes, checkpoint_dtype)}
    for fold_every in sorted({1, 2, 3, 4, 6, 8, shipped}):
        name = f"W {fold_every}{' (shipped)' if fold_every == shipped else ''}"
        contenders |= {
            f"{name}: {ntokens} tokens, {accepted} accepted": Verify(layer, ntokens, accepted, fold_every)
            for ntokens, accepted in ((1, 1), (4, 3), (4, 4))
        }
    contenders = {name: step for name, step in contenders.items() if step}

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
    eager_us, vllm_us = figures["eager step, fp32 state"], figures.get("vLLM step, no conv")
    one_token, table = None, [COLUMNS]
    for name, (least, median) in figures.items():
        ntokens = int(name.split(": ")[1][0]) if name.startswith("W") else 1
        if ntokens == 1:
            one_token = least, median
        both = [(least, eager_us[0], one_token[0], vllm_us and vllm_us[0])]
        both.append((median, eager_us[1], one_token[1], vllm_us and vllm_us[1]))
        ratios = [
            " ".join(
                f"{ours / ntokens / other:.2f}" if other else "-" for ours, *others in both for other in [others[i]]
            )
            for i in range(3)
        ]
        table.append([name, f"{least:.1f}", f"{median:.1f}", *ratios])
    benchmark.extra_info.update(
        figures=figures, shipped=shipped, read_gb_per_s=read_bandwidth() / 1e9, others_load=load
    )
    busy = " (beside other work)" if load >= 0.1 else ""
    rows.tables[f"mamba2_verify, {NLAYERS} layers in rotation, {shape}, {str(checkpoint_dtype)[6:]} state{busy}"] = (
        table
    )


COLUMNS = ["case", "us min", "us median", "per token / eager", "per token / one-token call", "per token / vLLM"]
