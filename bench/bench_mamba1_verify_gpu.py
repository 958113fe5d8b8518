"""mamba1_verify on a GPU against mamba_ssm's update: rows of a results file of its own (gpu_results.py has the schema).

`pytest bench/bench_mamba1_verify_gpu.py --benchmark --results FILE [--commit NAME] [--fold-every W]`; a row is timed
only after its results were checked.
"""

import importlib.util

import pytest
import torch
from bench_mamba2_verify_gpu import fill_in, first_line
from gpu_cases import ANY, NO_LIVE, STEADY
from gpu_mamba1 import FOLD_EVERY, Layers, cases
from gpu_rows import RESULTS

from llamba_kernels.cache import Session

OURS, PEER = "recurrent", "mamba_ssm"


def measure(contender, case, device, machine, fold_every=None):
    """The rows with their results; what fails has its error."""
    shape = [case.shape.d_inner, case.shape.dstate, case.shape.B_heads, case.shape.C_heads]
    row = {"op": "mamba1_verify", "shape": shape, "batch": case.batch, "ntokens": case.ntokens}
    row |= {"activations": case.activations, "checkpoint": case.checkpoint, "contender": contender}
    row |= dict.fromkeys((*RESULTS, "error_ratios", "error"))
    rows = [row | {"mix": mix} for mix in ((STEADY, NO_LIVE) if contender == OURS else (ANY,))]
    try:
        layers = Layers(case, device, Session(max_window=case.ntokens, fold_every=fold_every or FOLD_EVERY))
        for row in rows:
            fill_in(row, (layers.ours if contender == OURS else layers.peer)(row["mix"]), device, machine)
    except Exception as problem:  # a row that fails is reported, and the run goes on
        for row in rows:
            row["error"] = None if row["us_median"] else f"{type(problem).__name__}: {first_line(problem)}"
    return rows


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
@pytest.mark.parametrize("contender", [OURS, PEER])
def bench_mamba1_verify_gpu(gpu_results, request, contender, case):
    if contender == PEER and (importlib.util.find_spec(PEER) is None or case.shape.C_heads > 1):
        pytest.skip(f"{PEER} is not installed, or has no heads of B and C")
    rows = measure(contender, case, "cuda", gpu_results.data["machine"], request.config.getoption("--fold-every"))
    for row in rows:
        gpu_results.add(row)
    assert not any(row["error"] for row in rows), rows
