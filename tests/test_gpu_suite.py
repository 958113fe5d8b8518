"""bench/gpu_suite.sh with a Python that only pretends: what it says of stages that pass, fail or break the GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from gpu_cases import core_cases
from gpu_harness import LAUNCHES, SECONDS
from gpu_peers import TILE_SECONDS
from gpu_rows import empty_rows, missing
from test_gpu_harness import seconds_of_a_row

pytestmark = pytest.mark.cpu_only


SUITE = Path(__file__).parents[1] / "bench" / "gpu_suite.sh"
PRETEND = """#!/usr/bin/env bash
# Stands in for python3 on a machine with a GPU. A file $STATE/<word> makes the stage with that word go wrong.
case "$*" in
    *get_device_capability*) [ -e "$STATE/no-gpu" ] && exit 1; echo 90a ;;
    *get_device_name*) echo "NVIDIA Made-up" ;;
    *setup.py*) echo "archs $LLAMBA_CUDA_ARCHS"; [ ! -e "$STATE/build" ] ;;
    *tests/test_cursor*) sleep 0.2; [ ! -e "$STATE/tests" ] || { echo "FAILED tests/some_test.py"; exit 1; } ;;
    *"-k matmul"*) [ ! -e "$STATE/slow" ] || exec sleep 30 ;;
    *"-k recurrent"*) [ -e "$STATE/broken" ] || exit 0; rm "$STATE/broken"; echo "device lost"; exit 77 ;;
    *gpu_rows.py*) echo "7 of 9 rows were not measured" ;;
    *gpu_targets.py*) [ ! -e "$STATE/targets" ] ;;
    *) exit 0 ;;
esac
"""

SANITIZER = """#!/usr/bin/env bash
# Stands in for compute-sanitizer: says what it was asked, and runs the command after --error-exitcode 9.
[ "$1" = --help ] && { echo "  --kernel-name arg   a filter"; seq 100000; exit; }
echo "$@"
while [ "$1" != 9 ]; do shift; done
"${@:2}"
"""


@pytest.fixture
def suite(tmp_path):
    python, tools, state = tmp_path / "python", tmp_path / "tools", tmp_path / "state"
    tools.mkdir()
    state.mkdir()
    python.write_text(PRETEND)
    sanitizer = tools / "compute-sanitizer"
    sanitizer.write_text(SANITIZER)
    for script in (python, sanitizer):
        script.chmod(0o755)

    def run(*wrong, seconds=50):
        for word in wrong:
            (state / word).touch()
        path = f"{tools}:{os.environ['PATH']}"
        environment = os.environ | {"PYTHON": str(python), "STATE": str(state), "PATH": path}
        environment["LLAMBA_SUITE_SECONDS"] = str(seconds)
        command = [SUITE, tmp_path / "out", "a-commit"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        summary = (tmp_path / "out" / "summary.txt").read_text()
        return ended, dict(re.findall(r"^(\S+)\s{2,}(.*?)\s+\d+ s$", summary, re.MULTILINE)), tmp_path / "out"

    return run


def test_all_stages_pass(suite):
    ended, stages, out = suite()
    assert ended.returncode == 0 and set(stages.values()) == {"passed"}
    assert {"build", "tests", "memcheck", "racecheck", "initcheck", "synccheck", "bench-matmul", "compare"} <= set(
        stages
    )
    assert (out / "build.log").read_text() == "archs 90a\n"
    asked = (out / "racecheck.log").read_text()
    assert asked.startswith("--tool racecheck --kernel-name kns=llamba --error-exitcode 9 ")
    assert ended.stdout.startswith("NVIDIA Made-up, sm_90a, a-commit\n")


@pytest.mark.parametrize("stage", ["build", "tests", "targets"])
def test_a_failing_stage_is_reported_and_the_rest_runs(suite, stage):
    ended, stages, _ = suite(stage)
    assert ended.returncode == 1 and stages[stage] == "FAILED (status 1)" and stages["compare"] == "passed"
    assert ("    FAILED tests/some_test.py" in ended.stdout) == (stage == "tests")


def test_a_contender_that_broke_the_device_goes_on(suite):
    ended, stages, out = suite("broken")
    assert ended.returncode == 0 and stages["bench-recurrent"] == "passed"
    assert (out / "bench-recurrent.log").read_text() == "device lost\n"


def test_a_stage_ends_at_the_deadline_and_then_only_the_reports_are_written(suite):
    ended, stages, out = suite("slow", seconds=5)
    late = {"bench-snapshot", "bench-flashinfer", "bench-mamba_ssm", "bench-fold-every-2", "bench-fold-every-8"}
    late.add("bench-mamba1")
    assert ended.returncode == 1 and stages.pop("bench-matmul") == "TIMED OUT"
    assert {name for name, verdict in stages.items() if verdict == "NOT RUN (too late)"} == late
    assert {stages[name] for name in stages if name not in late} == {"passed"}
    assert (out / "missing.txt").read_text() == "7 of 9 rows were not measured\n" and (out / "targets.txt").exists()


def test_without_time_only_the_reports_are_written(suite):
    ended, stages, _ = suite(seconds=0)
    assert ended.returncode == 1
    reports = {name for name, verdict in stages.items() if verdict == "passed"}
    assert reports == {"table", "targets", "compare", "missing"} and len(stages) > 12


def limits():
    found = re.findall(r"^ *(contender|stage|sanitize) (\S+) (\d+) ", SUITE.read_text(), re.MULTILINE)
    return {name: int(limit) for _, name, limit in found}


def test_reports_fit_between_the_deadline_and_ten_minutes():
    left = 600 - 480 - 10 - 10  # a killed stage has 10 s to end, twice
    assert sum(limits()[name] for name in ("table", "targets", "compare", "missing")) <= left


def seconds_of(contender):
    """Of all its rows on an H200 (4000 GB/s), with 0.2 s for the arguments and the check of each."""
    total = 0
    for case in core_cases():
        states = {"snapshot": case.ntokens + 1, "mamba_ssm": 2 * case.ntokens, "recurrent": 2, "matmul": 2}[contender]
        us = max(2, states * case.state_bytes / 4000e3)
        mixes = len(empty_rows(contender, case))
        search = [TILE_SECONDS] * 3 if contender == "snapshot" else []
        total += mixes * (0.2 + seconds_of_a_row(us, LAUNCHES, 16 if mixes == 2 else 2, [SECONDS, *search]))
    return total


@pytest.mark.parametrize("contender", ["recurrent", "matmul", "snapshot", "mamba_ssm"])
def test_limits_of_the_benchmark_have_headroom(contender):
    assert 1.5 * seconds_of(contender) < limits()[contender]


def test_the_slow_sanitizers_run_part_of_what_the_others_run(suite):
    _, _, out = suite()
    chosen = {tool: (out / f"{tool}.log").read_text() for tool in ("memcheck", "synccheck", "racecheck", "initcheck")}
    assert all(text.count("--error-exitcode 9 ") == 1 for text in chosen.values())
    all_tests, few = (re.search(r" -k (.*)\n", chosen[tool])[1] for tool in ("memcheck", "racecheck"))
    assert chosen["synccheck"].endswith(f" -k {all_tests}\n") and chosen["initcheck"].endswith(f" -k {few}\n")

    tests = ["tests/test_mamba2_verify.py", "tests/test_mamba2_matmul.py", "tests/test_mamba1_verify.py"]
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "--device", "cuda", *tests, "-k", few]
    collected = subprocess.run(command, cwd=SUITE.parents[1], capture_output=True, text=True).stdout
    found = re.findall(r"^(tests/.*)::.*\[(.*)-chain\]$", collected, re.MULTILINE)
    cases = [(test, case) for test in tests[:2] for case in ("base", "dstate 128", "bf16")]
    assert found == cases + [(tests[2], case) for case in ("base", "attention-initialised, bf16", "bf16")]
    assert all_tests == "chain"  # of which these are a few


def test_without_a_gpu_it_says_so(suite):
    ended, stages, _ = suite("no-gpu")
    assert ended.returncode == 1 and not stages
    assert ended.stdout == "gpu_suite: torch must see a CUDA device; got none\n"


def test_rows_that_a_file_lacks():
    peers = {"triton": "3.4", "mamba_ssm": "not installed", "flashinfer": "0.6"}
    rows = [row for case in core_cases() for row in empty_rows("recurrent", case) + empty_rows("flashinfer ring", case)]
    count, lacking = missing({"machine": {"peers": peers}, "rows": rows[1:]})
    cases = len(core_cases())
    assert count == cases * (2 + 2 + 1 + 1 + 2) and len(lacking) == 1 + cases * (2 + 1 + 1)
    assert lacking[0] == f"recurrent: {core_cases()[0]}, steady" and not any("ring" in each for each in lacking)
    assert {each.split(":")[0] for each in lacking[1:]} == {"matmul", "snapshot", "flashinfer mtp"}
