"""RMSNorm as a loop over rows."""

import torch


def rms_norm_ref(x, weight, eps, residual=None, compute_dtype=torch.float64):
    """v / sqrt(mean(v^2) + eps) * weight, unrounded, and the new residual; argument order as the op."""
    v = x if residual is None else (residual.to(compute_dtype) + x.to(compute_dtype)).to(x.dtype)
    rows = v.to(compute_dtype).reshape(x.shape[:-1].numel(), x.shape[-1])
    out = torch.empty_like(rows)
    for i, row in enumerate(rows):
        out[i] = row / torch.sqrt((row * row).mean() + eps) * weight.to(compute_dtype)
    return out.reshape(x.shape), None if residual is None else v
