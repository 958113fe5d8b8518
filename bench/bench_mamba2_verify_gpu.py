"""mamba2_verify on a GPU against other ways to verify a window: rows of a results file (gpu_results.py has its schema).

`pytest bench/bench_mamba2_verify_gpu.py --benchmark [--full-grid] [--results FILE] [--commit NAME] [--fold-every W]`;
-k recurrent, -k matmul, ... measures one contender. A row is timed only after its results were checked. Exit status
77: a kernel hung or broke the device for this process; the same command with --resume goes on after that row.
"""

import importlib.util
import os
import threading
from functools import partial

import pytest
import torch
from gpu_cases import core_cases, full_cases
from gpu_check import readable, require_close
from gpu_harness import times_us
from gpu_ours import Ours
from gpu_peers import PEERS
from gpu_results import OURS, failures
from gpu_rows import empty_rows
from traffic import bound_us

GIVE_UP = 3  # a peer that failed this often in a row is not tried again: each try may compile for a minute
PATIENCE = {"ours": 60, "peer": 200}  # seconds for a row; a peer may compile
DEVICE_LOST = 77
failed_before = {}  # contender -> failures in a row, and the last one's sentence


def pytest_generate_tests(metafunc):
    cases = full_cases() if metafunc.config.getoption("--full-grid") else core_cases()
    metafunc.parametrize("case", cases, ids=lambda case: case.id)


def measure(contender, case, device, machine, fold_every=None):
    """The rows with their results; what fails has its error."""
    rows = empty_rows(contender, case)
    try:
        if contender in OURS:
            prepare = Ours(case, device, contender, fold_every).prepare
        else:
            prepare = partial(PEERS[contender][1], case, device)
        for row in rows:
            fill_in(row, prepare(row["mix"]), device, machine)
    except (MemoryError, torch.OutOfMemoryError) as problem:
        rows = [row | ({} if row["us_median"] else {"error": f"skipped: {first_line(problem)}"}) for row in rows]
    except Exception as problem:  # a row that fails is reported, and the run goes on
        error = f"{type(problem).__name__}: {first_line(problem)}"
        rows = [row | ({} if row["us_median"] else {"error": error}) for row in rows]
    return rows


def fill_in(row, prepared, device, machine):
    """Fills in the row's results, after a check of what the launches compute."""
    ratios = prepared.check()
    row["error_ratios"] = readable(ratios)
    require_close(row["contender"], ratios)
    row["us_min"], row["us_median"] = times_us(prepared.launches, device, prepared.cycle)
    row["nbytes"], row["fold_every"] = prepared.nbytes, prepared.details.get("fold_every")
    row["copy_gb_per_s"] = machine["copy_gb_per_s"]
    if "work" in prepared.details:
        limits = (machine[name] for name in ("copy_gb_per_s", "compute_capability", "sms", "clock_mhz"))
        row["bound_us"], row["bound_by"] = bound_us(prepared.details["work"], row["contender"], *limits)


def first_line(problem):
    return next(iter(str(problem).strip().splitlines()), "no message")[:300]


def give_up(gpu_results, rows, seconds):
    """Called by a timer when a kernel hangs: nothing but the end of the process stops it."""
    for row in rows:
        gpu_results.add(row | {"error": f"no result after {seconds} seconds"})
    os._exit(DEVICE_LOST)


def device_is_lost():
    """Whether an earlier kernel's fault has made the device unusable for this process."""
    try:
        torch.cuda.synchronize()
        return False
    except RuntimeError:
        return True


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("contender", [*OURS, *PEERS])
def bench_mamba2_verify_gpu(gpu_results, request, contender, case):
    option, rows = request.config.getoption, empty_rows(contender, case)
    if contender in PEERS and importlib.util.find_spec(PEERS[contender][0]) is None:
        pytest.skip(f"{PEERS[contender][0]} is not installed")
    if option("--resume") and gpu_results.has(rows[0]):
        pytest.skip("in the results already")
    count, sentence = failed_before.get(contender, (0, ""))
    if contender in PEERS and count >= GIVE_UP:
        pytest.skip(f"not tried again after {count} failures: {sentence}")
    seconds = PATIENCE["ours" if contender in OURS else "peer"]
    watch = threading.Timer(seconds, give_up, (gpu_results, rows, seconds))
    watch.start()
    rows = measure(contender, case, "cuda", gpu_results.data["machine"], option("--fold-every"))
    watch.cancel()
    for row in rows:
        gpu_results.add(row)
    wrong = [row["error"] for row in failures({"rows": rows})]
    failed_before[contender] = (count + 1, wrong[0]) if wrong else (0, "")
    if wrong and device_is_lost():
        pytest.exit(f"{contender}, {case}: {wrong[0]}; --resume goes on after this row", DEVICE_LOST)
    if wrong:
        pytest.fail(f"{contender}, {case}: {wrong[0]}", pytrace=False)
