"""RMSNorm over groups of x * silu(z): the norm of a Mamba-2 layer."""

import torch

from .._load import call, operator


@operator
def gated_rms_norm(x, z, weight, eps, group_size, *, out=None):
    """out = v / sqrt(mean(v ** 2) + eps) * weight, where v = x * silu(z) and the mean is over each group.

    Computed in fp32 and rounded once. A row's bits depend on that row alone, not on the other rows. No gradient.

    Args:
        x: (width), (rows, width) or (batch, ntokens, width), float32, bfloat16 or float16. Last stride 1.
        z: as x, or None: v = x, which is plain RMSNorm when group_size is width.
        weight: (width), dtype of x.
        eps: float, positive.
        group_size: int that divides width.
        out: as x, or None: a new tensor. May be x or z itself; else shares no memory
            with the inputs.
    Writes: out.
    Returns: out.
    Raises: ValueError (shapes, numbers), TypeError (dtypes, devices, strides, overlap).
    Devices: CPU, CUDA.
    Source: csrc/gated_rms_norm. Reference: python_ref/gated_rms_norm.py.
    """
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    call(torch.ops.llamba.gated_rms_norm.default, x, z, weight, eps, group_size, out)
    return out
