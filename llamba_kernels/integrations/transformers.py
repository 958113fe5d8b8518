"""transformers' own Mamba, Mamba-2, Falcon-Mamba and Bamba models on this package's kernels.

    from llamba_kernels.integrations import transformers
    transformers.enable()         # all four; enable("bamba") or enable(model): one. Or: with transformers.enable(): ...
    model.generate(...)
    transformers.disable()

Their modules call a few functions by name; those names are bound to this package's operators meanwhile, for models
that exist already, too. Cached steps use selective_state_update and causal_conv1d_update, on CPUs and CUDA; prefill of
Mamba and Falcon-Mamba uses selective_scan, on CPUs. What an operator does not do stays with transformers' own function:
a step whose tensors need gradients, other dtypes, devices and activations, packed sequences.
"""

import functools
import importlib
import inspect

import torch

from .._load import native
from ..ops import causal_conv1d_update, selective_scan, selective_state_update

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_DSTATE = 256
_STATE = ["state", "hidden_states", "dt", "A", "B", "C", "D", "dt_bias", "dt_softplus", "z", "kwargs"]
_CONV = ["hidden_states", "conv_state", "weight", "bias", "activation"]
_SCAN = ["hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "return_last_state"]


def _runs(kernels, *tensors):
    """Whether operators with `kernels` ("cpu cuda" or "cpu") can take these tensors, or None among them."""
    given = [tensor for tensor in tensors if tensor is not None]
    devices = {tensor.device.type for tensor in given}
    if len(devices) > 1 or not devices <= set(kernels.split()):
        return False
    if devices == {"cuda"} and native.llamba_cuda_problem():
        return False
    return all(tensor.dtype in _DTYPES and tensor.layout is torch.strided for tensor in given)


def _needs_gradients(*tensors):
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _state_update(original):
    @functools.wraps(original)
    def step(state, hidden_states, dt, A, B, C, D=None, dt_bias=None, dt_softplus=False, z=None, **kwargs):
        tensors = state, hidden_states, dt, A, B, C, D, z, dt_bias
        runs = _runs("cpu cuda", *tensors) and not _needs_gradients(*tensors)
        packed = any(kwargs.get(name) is not None for name in ("cu_seqlens", "seq_idx"))
        if not runs or packed or state.shape[-1] > _MOST_DSTATE:
            return original(
                state, hidden_states, dt, A, B, C, D, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z, **kwargs
            )
        return selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)

    return step


def _conv_update(original):
    @functools.wraps(original)
    def step(hidden_states, conv_state, weight, bias=None, activation=None):
        tensors = hidden_states, conv_state, weight, bias
        runs = _runs("cpu cuda", *tensors) and not _needs_gradients(*tensors)
        if not runs or activation not in (None, "silu", "swish") or not 2 <= weight.shape[-1] <= 4:
            return original(hidden_states, conv_state, weight, bias, activation)
        return causal_conv1d_update(hidden_states, conv_state, weight, bias, activation)

    return step


def _scan(original):
    @functools.wraps(original)
    def scan(
        hidden_states,
        dt,
        A,
        B,
        C,
        D=None,
        z=None,
        delta_bias=None,
        delta_softplus=False,
        return_last_state=False,
        **kwargs,
    ):
        runs = _runs("cpu", hidden_states, dt, A, B, C, D, z, delta_bias)
        if not runs or A.shape[-1] > _MOST_DSTATE or {A.dtype, *_dtypes(D, delta_bias)} != {torch.float32}:
            return original(
                *(hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state), **kwargs
            )
        x, dt, B, C, z = (None if t is None else _rows(t, hidden_states.dtype) for t in (hidden_states, dt, B, C, z))
        options = dict(dt_softplus=delta_softplus, return_final_state=return_last_state)
        result = selective_scan(x, dt, A.contiguous(), B, C, D, z, delta_bias, **options)
        if return_last_state:
            return result[0].transpose(1, 2), result[1]
        return result.transpose(1, 2)

    return scan


def _dtypes(*tensors):
    return {tensor.dtype for tensor in tensors if tensor is not None}


def _rows(tensor, dtype):
    """(batch, channels, tokens) with a token's channels side by side; most are so already."""
    tensor = tensor.transpose(1, 2).to(dtype)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


_FUNCTIONS = {  # name: what makes ours of theirs, and the parameters that it must have
    "mamba_selective_state_update": (_state_update, _STATE),
    "mamba2_selective_state_update": (_state_update, _STATE),
    "causal_conv1d_update": (_conv_update, _CONV),
    "mamba_selective_scan": (_scan, _SCAN),
}
_MAMBA = ("mamba_selective_state_update", "causal_conv1d_update", "mamba_selective_scan")
_MAMBA2 = ("mamba2_selective_state_update", "causal_conv1d_update")
FAMILIES = {"mamba": _MAMBA, "falcon_mamba": _MAMBA, "mamba2": _MAMBA2, "bamba": _MAMBA2}
_enabled = {}  # (family, name): (module, theirs, ours)


class Enabled:
    """What `enable` returns: as a context manager it disables at its end what that call has enabled."""

    def __init__(self, keys):
        self._keys = keys

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for key in self._keys:
            _restore(key)


def enable(*which):
    """Bind the functions of transformers' models to this package's operators. Calling it again changes nothing.

    Args:
        which: families ("mamba", "mamba2", "falcon_mamba", "bamba") or models of them; none: all four.
    Returns: Enabled, for use as a context manager.
    Raises: ValueError if a model is of another family, or if this version of transformers does not call what version
        5.23 calls. Nothing is bound then.
    """
    found = {}
    for family in dict.fromkeys(map(_family, which or FAMILIES)):
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        for name in FAMILIES[family]:
            make, parameters = _FUNCTIONS[name]
            theirs = getattr(module, name, None)
            if (family, name) in _enabled and theirs is _enabled[family, name][2]:
                continue
            got = list(inspect.signature(theirs).parameters) if callable(theirs) else []
            if got[: len(parameters)] != parameters:
                version = importlib.import_module("transformers").__version__
                raise ValueError(
                    f"integrations.transformers: transformers must have {name}({', '.join(parameters)}) in "
                    f"{module.__name__}, as version 5.23 has; got {version} with {', '.join(got) or 'none'}"
                )
            found[family, name] = module, theirs, make(theirs)
    for (family, name), entry in found.items():
        setattr(entry[0], name, entry[2])
        _enabled[family, name] = entry
    return Enabled(list(found))


def disable(*which):
    """Give transformers its own functions back; `which` as for `enable`. Harmless if they were never bound."""
    for family in map(_family, which or FAMILIES):
        for name in FAMILIES[family]:
            _restore((family, name))


def _restore(key):
    module, theirs, ours = _enabled.pop(key, (None, None, None))
    if module is not None and getattr(module, key[1]) is ours:
        setattr(module, key[1], theirs)


def _family(which):
    family = which if isinstance(which, str) else getattr(getattr(which, "config", None), "model_type", None)
    if family not in FAMILIES:
        got = repr(which) if isinstance(which, str) else family or type(which).__name__
        raise ValueError(f"integrations.transformers: models must be of {', '.join(FAMILIES)}; got {got}")
    return family
