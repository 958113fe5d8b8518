"""Loads the native library; calls its operators and turns their refusals into ValueError and TypeError."""

import ctypes
import os
from pathlib import Path

import torch

_FILE = Path(__file__).with_name("_C.so")
if not _FILE.exists():
    raise ImportError(
        "llamba_kernels: the native library must be built (pip install --no-build-isolation -e . in this source tree; "
        f"if the package is installed elsewhere, run Python from another folder); got no {_FILE}"
    )

_ISAS = ("avx512bf16", "avx512", "avx2", "generic")
ASKED_ISA = os.environ.get("LLAMBA_CPU_ISA")  # as the library, too, reads it now and never again; unset or empty: none
if ASKED_ISA and ASKED_ISA not in _ISAS:
    raise ValueError(f"llamba_kernels: LLAMBA_CPU_ISA must be {', '.join(_ISAS[:-1])} or {_ISAS[-1]}; got {ASKED_ISA}")
torch.ops.load_library(_FILE)

native = ctypes.CDLL(str(_FILE))
for _name in ("llamba_op_error", "llamba_isa_cpu", "llamba_cuda_archs", "llamba_cuda_problem"):
    getattr(native, _name).restype = ctypes.c_char_p

_ERRORS = {1: ValueError, 2: TypeError}  # llamba_status in csrc/include/llamba.h


def call(op, *args):
    """op(*args); a refused call raises ValueError or TypeError with the operator's one sentence."""
    if torch.is_grad_enabled():
        _refuse_gradients(op, args)
    try:
        op(*args)
    except NotImplementedError:  # torch's, before the operator sees the call
        raise TypeError(_no_kernel(op, args)) from None
    except RuntimeError as error:
        raise _refusal(error) from None


def _refuse_gradients(op, args):
    """The operators have no backward: an output without gradient would quietly cut a training graph."""
    for i, value in enumerate(args):
        if isinstance(value, torch.Tensor) and value.requires_grad:
            raise ValueError(
                f"{_name(op)}: {op._schema.arguments[i].name} must not require grad, because the operator has no "
                "backward (call it under torch.no_grad() or torch.inference_mode()); got one that does"
            )


def _no_kernel(op, args):
    """torch's own text for a device without a kernel is two pages long."""
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    got = sorted({f"{str(tensor.layout).removeprefix('torch.')} on {tensor.device.type}" for tensor in tensors})
    rule = "tensors must be strided and on a device that the operator's docstring names"
    return f"{_name(op)}: {rule}; got {', '.join(got)}"


def _name(op):
    return op._schema.name.removeprefix("llamba::")


def _refusal(error):
    # The sentence is compared because torch itself may have refused the call before the operator saw it.
    if str(error) != native.llamba_op_error().decode():
        return error
    return _ERRORS.get(native.llamba_op_status(), RuntimeError)(str(error))
