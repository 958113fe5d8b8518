"""Teeth: every fault of simt_faults.py, seeded into a copy of the kernels, is caught by the test that names it.

Each copy brings the compiled files along, so that only what the fault changes is compiled. The last output is committed
as bench/results/simt/faults.txt (`python tests/test_simt_faults.py [words of names]` prints it).
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sanitized
from simt_faults import FAULTS, Fault

pytestmark = [pytest.mark.slow, pytest.mark.cpu_only]
COPIED = ["csrc", "tests", "bench", "python_ref", "llamba_kernels", "setup.py", "pyproject.toml", "build/simt-address"]
LIBRARY = "native/libllamba_cuda.so"
SENTENCE = r"must succeed; got simt \((.*?)(?: in thread \d+ of block .*?)?\)"


def seed(fault, root):
    path = root / "csrc" / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.name}: {fault.file} must have its text once; got {text.count(fault.old)} times")
    path.write_text(text.replace(fault.old, fault.new))


def copy_tree(root):
    for name in COPIED:
        source, target = sanitized.ROOT / name, root / name
        if source.is_dir():
            shutil.copytree(
                source, target, ignore=shutil.ignore_patterns("__pycache__", "*.so" if "/" not in name else "")
            )
        else:
            shutil.copy2(source, target)


def run(fault):
    """(exit status, output) of the fault's tests."""
    with tempfile.TemporaryDirectory() as folder:
        root, build = Path(folder), Path(folder) / "build" / "simt-address"
        copy_tree(root)
        if fault.old:
            seed(fault, root)
        ninja = [sys.executable, "-m", "ninja"]
        ninja = [shutil.which("ninja")] if shutil.which("ninja") else ninja
        command = [*ninja, "-f", build / "build.ninja", "-j1", f"build/simt-address/{LIBRARY}"]
        compiled = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if compiled.returncode != 0:
            raise RuntimeError(f"{fault.name}: it must compile; got\n{compiled.stdout[-3000:]}")
        shutil.copy2(build / LIBRARY, build / "lib" / "llamba_kernels")
        options = ["-q", "-x", "--device=simt", "--capture=sys", "-p", "no:cacheprovider", *fault.tests.split()]
        environment = {**sanitized.environment(build / "lib"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "pytest", *options]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        result = subprocess.run(command, cwd=root, env=environment, **pipes)
        return result.returncode, result.stdout


def classify(output):
    """(how, what it said) of a failed run."""
    if found := re.search(r"ERROR: AddressSanitizer: (\S+)", output):
        return "address", found[1]
    if found := re.search(r"runtime error: (.*)", output):
        return "undefined", found[1]
    if found := re.search(SENTENCE, output, re.DOTALL):
        sentence = " ".join(found[1].replace("\nE", "").split())
        return "deadlock" if "deadlock" in sentence else "executor", sentence
    said = re.findall(r"^E +(\S.*)", output, re.MULTILINE)
    what = next((line for line in said if "Error" in line), said[0] if said else "")
    return "poison" if re.search(r"(\bnan|2147483647|-1) instead|error nan", what) else "wrong", what.replace(
        "AssertionError: ", ""
    )


def caught(fault):
    """(caught, by which test, how, what it said)."""
    status, output = run(fault)
    if status == 0:
        return False, "", "", "nothing failed"
    if status != 1 or not re.search(r" failed|AddressSanitizer|runtime error", output):
        raise RuntimeError(f"{fault.name}: pytest must run its tests; got exit status {status}\n{output[-3000:]}")
    failed = re.search(r"^FAILED tests/(.+?)(?: - .*)?$", output, re.MULTILINE)
    how, what = classify(output)
    return how == fault.how, failed[1] if failed else fault.tests.replace("tests/", ""), how, what


def row(fault):
    good, test, how, what = caught(fault)
    return good, f"{fault.name}\n    {how or 'NOT CAUGHT'}: {test}\n    {what[:150]}"


@functools.cache
def rows():
    sanitized.runtime()
    sanitized.build(LLAMBA_SIMT="1")
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        return dict(zip(FAULTS, pool.map(row, FAULTS), strict=True))


def test_the_tests_pass_without_a_fault():
    sanitized.build(LLAMBA_SIMT="1")
    for tests in sorted({fault.tests for fault in FAULTS}):
        status, output = run(Fault("none", "", "", "", tests, ""))
        assert status == 0, output[-3000:]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_is_caught(fault):
    good, text = rows()[fault]
    print(text)
    assert good, f"expected: {fault.how}\n{text}"


def test_a_text_that_is_gone_is_a_clear_failure(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "one.cuh").write_text("old old")
    for old, times in ("old", 2), ("new", 0):
        with pytest.raises(ValueError, match=f"^a name: one.cuh must have its text once; got {times} times$"):
            seed(Fault("a name", "one.cuh", old, "x", "", ""), tmp_path)


if __name__ == "__main__":
    chosen = [fault for fault in FAULTS if all(word in fault.name for word in sys.argv[1:])]
    sanitized.build(LLAMBA_SIMT="1")
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        results = []
        for good, text in pool.map(row, chosen):
            print(text if good else f"{text}\n    NOT AS EXPECTED", flush=True)
            results.append(good)
    print(f"{sum(results)} of {len(results)} faults caught as expected")
    sys.exit(not all(results))
