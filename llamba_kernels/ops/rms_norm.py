"""RMSNorm, by itself or together with the addition before it: a Llama layer's norms, and per-head q and k norms."""

import torch

from .._load import call, operator


@operator
def rms_norm(x, weight, eps, residual=None, *, out=None):
    """out = v / sqrt(mean(v ** 2) + eps) * weight, where v = x, or residual + x, which becomes the residual.

    Computed in fp32 and rounded once; the sum is rounded to the dtype first, as an addition by itself would be. A row's
    bits depend on that row alone, not on the other rows. No gradient.

    Args:
        x: (width), (rows, width), (batch, ntokens, width) or (batch, ntokens, nheads, width), float32, bfloat16 or
            float16; each row of width has its own norm. Last stride 1.
        weight: (width), dtype of x.
        eps: float, positive.
        residual: as x, or None. Shares no memory with the others.
        out: as x, or None: a new tensor. May be x itself; else shares no memory with the others.
    Writes: out; residual.
    Returns: out.
    Raises: ValueError (shapes, numbers), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU, CUDA.
    Source: csrc/rms_norm. Reference: python_ref/rms_norm.py.
    """
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    call(torch.ops.llamba.rms_norm.default, x, weight, eps, residual, out)
    return out
