"""The product inside a Llama MLP."""

import torch

from .._load import call, operator


@operator
def silu_mul(gate, up, *, out=None):
    """out = silu(gate) * up, silu(x) = x / (1 + exp(-x)).

    Computed in fp32 and rounded once. An element's bits depend on its gate and up alone, not on where they lie. No
    gradient.

    Args:
        gate: (width), (rows, width) or (batch, ntokens, width), float32, bfloat16 or float16. Last stride 1.
        up: as gate. Both may be columns of one fused projection.
        out: as gate, or None: a new tensor. May be gate or up itself; else shares no memory with them.
    Writes: out.
    Returns: out.
    Raises: ValueError (shapes), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU, CUDA.
    Source: csrc/silu_mul. Reference: python_ref/silu_mul.py.
    """
    if out is None:
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    call(torch.ops.llamba.silu_mul.default, gate, up, out)
    return out
