"""bench/gpu_suite.sh with a Python that only pretends: what it says of stages that pass, fail or break the GPU."""

import os
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only


SUITE = Path(__file__).parents[1] / "bench" / "gpu_suite.sh"
PRETEND = """#!/usr/bin/env bash
# Stands in for python3 on a machine with a GPU. A file $STATE/<word> makes the stage with that word go wrong.
case "$*" in
    *get_device_capability*) [ -e "$STATE/no-gpu" ] && exit 1; echo 90a ;;
    *get_device_name*) echo "NVIDIA Made-up" ;;
    *setup.py*) echo "archs $LLAMBA_CUDA_ARCHS"; [ ! -e "$STATE/build" ] ;;
    *tests/test_cursor*) sleep 0.2; [ ! -e "$STATE/tests" ] || { echo "FAILED tests/some_test.py"; exit 1; } ;;
    *"-k recurrent"*) [ -e "$STATE/broken" ] || exit 0; rm "$STATE/broken"; echo "device lost"; exit 77 ;;
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

    def run(*wrong):
        for word in wrong:
            (state / word).touch()
        path = f"{tools}:{os.environ['PATH']}"
        environment = os.environ | {"PYTHON": str(python), "STATE": str(state), "PATH": path}
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


def test_without_a_gpu_it_says_so(suite):
    ended, stages, _ = suite("no-gpu")
    assert ended.returncode == 1 and not stages
    assert ended.stdout == "gpu_suite: torch must see a CUDA device; got none\n"
