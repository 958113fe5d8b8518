"""Loads the native library; calls its operators and turns their refusals into ValueError and TypeError."""

import ctypes
import functools
import inspect
import os
from numbers import Integral, Real
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

_ERRORS = {1: ValueError, 2: TypeError, 4: MemoryError}  # llamba_status in csrc/include/llamba.h


_IMPLEMENTATIONS = torch.library.Library("llamba", "IMPL")


def register(op):
    """What torch asks of an operator besides its kernels: the fake, and what to do with negative views."""
    torch.library.register_fake(op.name(), _fake(op))
    _IMPLEMENTATIONS.impl(op.name(), _refuse_negative_views(op), "Negative")


def operator(wrapper):
    """Decorates the Python function of the operator of its name: registers the fake, checks the arguments' types.

    Most types are looked at only once something has failed, so a call that works pays next to nothing for it.
    """
    if not hasattr(torch.ops.llamba, wrapper.__name__):
        raise ImportError(
            "llamba_kernels: the native library must be built from these sources (pip install --no-build-isolation "
            f"-e . again); got one without {wrapper.__name__}"
        )
    op = getattr(torch.ops.llamba, wrapper.__name__).default
    register(op)
    parameters = inspect.signature(wrapper).parameters
    names = list(parameters)
    # A parameter whose default is a string names one of the schema's ints; its wrapper checks it.
    schema = [
        argument
        for argument in op._schema.arguments
        if argument.name in parameters and not isinstance(parameters[argument.name].default, str)
    ]
    numbers, bools = (
        [(names.index(arg.name), arg.name) for arg in schema if str(arg.type) in types]
        for types in (("int", "float"), ("bool",))
    )

    def refuse_types(args, kwargs):
        given = dict(zip(names, args, strict=False)) | kwargs
        absent = [name for name in given if given[name] is None and parameters[name].default is None]
        _refuse_types(op, [(arg, given[arg.name]) for arg in schema if arg.name in given and arg.name not in absent])

    @functools.wraps(wrapper)
    def checked(*args, **kwargs):
        for i, name in numbers:  # torch would make a number of it: 8 of tensor(8.5)
            if isinstance(args[i] if i < len(args) else kwargs.get(name), torch.Tensor):
                refuse_types(args, kwargs)
        for i, name in bools:  # torch would make a bool of any number and of None
            if not isinstance(args[i] if i < len(args) else kwargs.get(name, False), _TYPES["bool"][0]):
                refuse_types(args, kwargs)
        try:
            return wrapper(*args, **kwargs)
        except Exception:
            refuse_types(args, kwargs)
            raise

    return checked


def call(op, *args):
    """op(*args); a refused call raises ValueError or TypeError with the operator's one sentence."""
    if torch.is_grad_enabled():
        _refuse_gradients(op, args)
    try:
        op(*args)
    except RuntimeError as error:
        _refuse_types(op, zip(op._schema.arguments, args, strict=True))
        raise _refusal(op, args, error) from None


def raise_status(status):
    """Raises what an operator that was called past torch has refused: its one sentence."""
    if status:
        raise _ERRORS.get(status, RuntimeError)(native.llamba_op_error().decode())


def _fake(op):
    """All outputs are arguments, so there is nothing to return. torch comes here, too, when one tensor is on meta."""

    def fake(*args):
        _refuse_types(op, zip(op._schema.arguments, args, strict=True))
        devices = sorted({tensor.device.type for value in args for tensor in _tensors(value)})
        if len(devices) > 1:
            raise TypeError(
                f"{_name(op)}: tensors must be on one device, all on meta or none; got {', '.join(devices)}"
            )

    return fake


def _refuse_negative_views(op):
    """torch's own way with them copies what is written, and fails after the call if an optional argument is None."""

    def refuse(*args):
        raise TypeError(f"{_name(op)}: tensors must be plain strided ones; got a negative view")

    return refuse


def _tensors(value):
    """The tensors of an argument: itself, those of a list, or none."""
    if isinstance(value, torch.Tensor):
        return (value,)
    return [each for each in value if isinstance(each, torch.Tensor)] if isinstance(value, (list, tuple)) else ()


_TYPES = {  # of a schema: what torch takes for it, how a sentence says so, and the bits of an int that are too many
    "Tensor": (torch.Tensor, "a tensor", None),
    "int": ((Integral, torch.SymInt), "an int", 64),
    "bool": ((bool, torch.SymBool), "a bool", None),
    "float": ((Real, torch.SymInt, torch.SymFloat), "a number", 1024),
}


def _refuse_types(op, arguments):
    """One sentence where torch would write a paragraph, or where it makes an empty tensor of None."""
    for arg, value in arguments:
        if str(arg.type) == "List[Tensor]":
            _refuse_other_lists(op, arg.name, value)
        kind = str(arg.type).removeprefix("Optional[").removesuffix("]")
        optional = kind != str(arg.type)
        if kind not in _TYPES or (optional and value is None):
            continue
        types, text, bits = _TYPES[kind]
        rule = f"{_name(op)}: {arg.name} must be {text}{' or None' if optional else ''}"
        if not isinstance(value, types):
            got = "None" if value is None else f"{type(value).__name__} {value!r}".splitlines()[0][:100]
            raise TypeError(f"{rule}; got {got}") from None
        if bits and isinstance(value, int) and value.bit_length() >= bits:
            raise ValueError(f"{rule} of fewer than {bits} bits; got one of {value.bit_length()}") from None


def _refuse_other_lists(op, name, value):
    is_list = isinstance(value, (list, tuple))
    wrong = [type(each).__name__ for each in value if not isinstance(each, torch.Tensor)] if is_list else None
    if not is_list or wrong:
        got = f"{type(value).__name__}{' with ' + wrong[0] if wrong else ''}"
        raise TypeError(f"{_name(op)}: {name} must be a list of tensors; got {got}") from None


def _refuse_gradients(op, args):
    """The operators have no backward: an output without gradient would quietly cut a training graph."""
    for i, value in enumerate(args):
        if any(tensor.requires_grad for tensor in _tensors(value)):
            raise ValueError(
                f"{_name(op)}: {op._schema.arguments[i].name} must not require grad, because the operator has no "
                "backward (call it under torch.no_grad() or torch.inference_mode()); got one that does"
            )


def _name(op):
    return op._schema.name.removeprefix("llamba::")


def _refusal(op, args, error):
    # The sentence is compared because torch itself may have refused the call before the operator saw it.
    if str(error) == native.llamba_op_error().decode():
        return _ERRORS.get(native.llamba_op_status(), RuntimeError)(str(error))
    if not isinstance(error, NotImplementedError):
        return error
    # torch's own text for a device without a kernel is two pages long
    tensors = [tensor for value in args for tensor in _tensors(value)]
    got = sorted({f"{str(tensor.layout).removeprefix('torch.')} on {tensor.device.type}" for tensor in tensors})
    rule = "tensors must be plain strided ones on a device that the operator's docstring names"
    return TypeError(f"{_name(op)}: {rule}; got {', '.join(got)}")
