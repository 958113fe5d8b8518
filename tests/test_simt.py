"""The CUDA kernels' own source, on the CPU: the operators' tests run against the executor of csrc/simt (--device simt).

Built with AddressSanitizer and UndefinedBehaviorSanitizer; each block under a random schedule of its threads. The tests
are those of every operator with a CUDA kernel, in two processes side by side: a quarter of the cases of each, which the
seed chooses, and all with -m slow.
"""

import os
import re
import subprocess
import sys

import pytest
import sanitized
from simt_faults import FAULTS

pytestmark = pytest.mark.cpu_only  # it starts the tests that are not
TESTS = sanitized.ROOT / "tests"
SEED = int(os.environ.get("LLAMBA_SIMT_SEED", "1"))  # of the thread schedules
ELSEWHERE = {  # whose tests are another's
    "state_import": "materialize",
    "conv1d_verify": "mamba1_[rvw]",
}
WHOLE_STEPS = ["test_mamba2_walk.py", "test_step.py"]
SLOWEST = "test_mamba2_*.py"  # about half of the time: a process of their own
SHARE = 4
LEAST = 600  # cases in all, of which at least a SHARE-th must run


def kernel_tests():
    """The tests of every csrc/<op>/<stem>_launch.cu, and of what else needs a device."""
    names = set(WHOLE_STEPS)
    for launcher in sanitized.ROOT.glob("csrc/*/*_launch.cu"):
        stem = launcher.name.removesuffix("_launch.cu")
        found = [path.name for path in TESTS.glob(f"test_{ELSEWHERE.get(stem, stem)}*.py")]
        assert found, f"{launcher.name} must have tests/test_{stem}*.py"
        names.update(found)
    mark = re.compile(r"^(?:@|pytestmark = )pytest\.mark\.device_only", re.MULTILINE)
    marked = [path.name for path in TESTS.glob("test_*.py") if mark.search(path.read_text())]
    return sorted(names.union(marked))


@pytest.fixture(scope="module")
def environment():
    sanitized.runtime()
    library = sanitized.build(LLAMBA_SIMT="1")
    return {**sanitized.environment(library), "OMP_NUM_THREADS": "1"}


def start(environment, names, seed, *options):
    options = [f"--simt-seed={seed}", "--capture=sys", *options]  # a sanitizer writes to the file, not to sys.stderr
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--device=simt", "-p", "no:cacheprovider", *options]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(
        [*command, *(f"tests/{name}" for name in names)], cwd=TESTS.parent, env=environment, **pipes
    )


def finish(process, seed):
    """How many tests passed."""
    output = process.communicate()[0]
    closing = output.rstrip().splitlines()[-1]
    print(f"schedules of seed {seed}: {closing}")
    assert process.returncode == 0, f"LLAMBA_SIMT_SEED={seed}: exit status {process.returncode}\n{output[-8000:]}"
    return int(re.search(r"(\d+) passed", closing)[1])


@pytest.mark.parametrize("share", [SHARE, pytest.param(1, marks=pytest.mark.slow)])
def test_every_kernels_tests_with_sanitizers(environment, share):
    slowest = sorted(path.name for path in TESTS.glob(SLOWEST))
    others = [name for name in kernel_tests() if name not in slowest]
    assert len(slowest) > 1 and len(others) > 5
    processes = [start(environment, names, SEED, f"--share={share}") for names in (slowest, others)]
    assert sum(finish(process, SEED) for process in processes) >= LEAST / share


@pytest.mark.slow
def test_a_few_tests_under_several_schedules(environment):
    """Chains and trees with folds, padding, blocks of every shape with bulk copies, sums over several warps."""
    few = "base or shape or padding"
    names = ["test_mamba2_matmul.py", "test_mamba2_verify.py", "test_rms_norm.py"]
    seeds = (SEED + 1, SEED + 2)
    processes = [start(environment, names, seed, "-k", few) for seed in seeds]
    assert all([finish(process, seed) > 5 for process, seed in zip(processes, seeds, strict=True)])


@pytest.mark.cpu_only
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_the_faults_of_the_slow_test_are_still_in_the_sources(fault):
    assert (sanitized.ROOT / "csrc" / fault.file).read_text().count(fault.old) == 1
