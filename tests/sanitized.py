"""Builds with AddressSanitizer and UndefinedBehaviorSanitizer, beside the ordinary one, and what runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def compiler():
    return os.environ.get("CXX", "g++")


def runtime():
    """The libraries that an unsanitized python must preload; skips where the compiler has none."""
    names = [f"-print-file-name={name}" for name in ("libasan.so", "libstdc++.so")]  # or it does not find __cxa_throw
    paths = [subprocess.run([compiler(), name], capture_output=True, text=True).stdout.strip() for name in names]
    if not all(map(os.path.isabs, paths)):
        pytest.skip("the compiler has no AddressSanitizer")
    return " ".join(paths)


def build(root=ROOT, **variables):
    """The folder with the package, built with the sanitizers; `variables` of setup.py beside."""
    environment = {**os.environ, **variables, "LLAMBA_SANITIZE": "address"}
    subprocess.run([sys.executable, "setup.py", "-q", "build"], cwd=root, env=environment, check=True)
    return root / "build" / ("simt-address" if "LLAMBA_SIMT" in variables else "address") / "lib"


def environment(library):
    return {
        **os.environ,
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(library),
    }
