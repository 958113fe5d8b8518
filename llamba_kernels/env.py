"""What is built and what would run here: printed by `llamba env`, kept with every benchmark result."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from . import __version__
from ._load import ASKED_ISA, native


def describe() -> dict[str, str]:
    """One line each, in the order to print."""
    return {
        "llamba_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "cpu": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "cpu kernels": _cpu_kernels(),
        "cuda device": _cuda_device(),
        "cuda kernels": _cuda_kernels(),
    }


def _cpu_name() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def _cpu_kernels() -> str:
    isa = native.llamba_isa_cpu().decode()
    if not ASKED_ISA:
        return f"{isa} (the best this processor has)"
    if ASKED_ISA == isa:
        return f"{isa} (LLAMBA_CPU_ISA={isa})"
    return f"{isa} (LLAMBA_CPU_ISA asked for {ASKED_ISA}, which this processor lacks)"


def _cuda_kernels() -> str:
    library = Path(__file__).with_name("libllamba_cuda.so")
    if not library.exists():
        return "not built (no nvcc at install time, or LLAMBA_CUDA=0)"
    archs = native.llamba_cuda_archs().decode()
    if not archs:
        return f"cannot be loaded: {native.llamba_cuda_problem().decode()}"
    return " ".join(f"sm_{arch}" for arch in archs.split())


def _cuda_device() -> str:
    if torch.version.cuda is None:
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return "none: torch sees no device or no driver"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}, CUDA {torch.version.cuda}"
