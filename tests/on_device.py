"""Runs operators elsewhere than on their tensors' device, so that one set of tests serves CPU, executor and GPU."""

import ctypes
import importlib
from contextlib import contextmanager
from pathlib import Path

import torch

import llamba_kernels
from llamba_kernels import _load, ops


def simt_library():
    """libllamba_cuda.so of a LLAMBA_SIMT=1 build, whose own _C.so has loaded it already."""
    path = Path(llamba_kernels.__file__).with_name("libllamba_cuda.so")
    library = ctypes.CDLL(str(path))
    if not hasattr(library, "llamba_simt_enabled"):
        how = "PYTHONPATH=build/simt/lib python -P -m pytest --device simt"
        raise RuntimeError(f"--device simt: the package must be a LLAMBA_SIMT=1 build ({how}); got {path}")
    return library


@contextmanager
def cpu_kernels():
    """Meanwhile operators run their CPU kernels, whatever --device says."""
    modules = {importlib.import_module(getattr(ops, name).__module__) for name in ops.__all__}
    before = {module: module.call for module in modules if hasattr(module, "call")}
    enabled = None
    if torch.cuda.is_available():
        for module in before:
            module.call = _load.call
    else:
        enabled = ctypes.c_int.in_dll(simt_library(), "llamba_simt_enabled")
        enabled.value = 0
    try:
        yield
    finally:
        for module, call in before.items():
            module.call = call
        if enabled is not None:
            enabled.value = 1


@contextmanager
def another_device(**facts):
    """Launchers choose for a GPU of these multiprocessors, shared_bytes, arch meanwhile; executor only."""
    values = {name: ctypes.c_int.in_dll(simt_library(), f"llamba_simt_{name}") for name in facts}
    before = {name: value.value for name, value in values.items()}
    try:
        for name, value in values.items():
            value.value = facts[name]
        yield
    finally:
        for name, value in values.items():
            value.value = before[name]


def count_sectors(function):
    """What function returns, and what its launches ask of global memory in sectors of 32 bytes: distinct ones loaded,
    distinct ones stored, all requests; executor only."""
    library, counts = simt_library(), (ctypes.c_uint64 * 3)()
    library.llamba_simt_traffic(1, None)
    result = function()
    library.llamba_simt_traffic(0, counts)
    return result, tuple(counts)


def run_operators_on_cuda():
    """Every operator that has a CUDA kernel gets its CPU tensors copied to the GPU and back."""
    for name in ops.__all__:
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"llamba::{name}", "CUDA"):
            module = importlib.import_module(getattr(ops, name).__module__)
            module.call = call_on_cuda


def call_on_cuda(op, *args):
    """_load.call with whole storages moved, so that strides, views of one tensor and what lies around them stay."""
    storages = {}

    def moved(value):
        if isinstance(value, (list, tuple)):
            return [moved(each) for each in value]
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
            return value
        whole = value.untyped_storage()
        if whole.data_ptr() not in storages:
            host = torch.empty(0, dtype=torch.uint8).set_(whole)
            storages[whole.data_ptr()] = (host, host.cuda())
        there = storages[whole.data_ptr()][1].untyped_storage()
        return torch.empty(0, dtype=value.dtype, device="cuda").set_(
            there, value.storage_offset(), value.size(), value.stride()
        )

    _load.call(op, *map(moved, args))
    torch.cuda.synchronize()
    for host, there in storages.values():
        host.copy_(there)
