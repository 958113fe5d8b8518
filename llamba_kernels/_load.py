"""Loads the native library and turns its refusals into ValueError and TypeError."""

import ctypes
from pathlib import Path

import torch

_FILE = Path(__file__).with_name("_C.so")
if not _FILE.exists():
    raise ImportError(
        f"llamba_kernels: the native library must be built (pip install --no-build-isolation .); got no {_FILE}"
    )
torch.ops.load_library(_FILE)

native = ctypes.CDLL(str(_FILE))
native.llamba_op_error.restype = ctypes.c_char_p
native.llamba_cuda_problem.restype = ctypes.c_char_p
native.llamba_isa_cpu.restype = ctypes.c_char_p

_ERRORS = {1: ValueError, 2: TypeError}  # llamba_status in csrc/include/llamba.h


def call(op, *args):
    """op(*args); a refused call raises ValueError or TypeError with the operator's one sentence."""
    try:
        op(*args)
    except RuntimeError as error:
        raise _refusal(error) from None


def _refusal(error):
    # The sentence is compared because torch itself may have refused the call before the operator saw it.
    if str(error) != native.llamba_op_error().decode():
        return error
    return _ERRORS.get(native.llamba_op_status(), RuntimeError)(str(error))
