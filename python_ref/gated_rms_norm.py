"""Gated RMSNorm as a loop over rows and groups."""

import math

import torch


def gated_rms_norm_ref(x, z, weight, eps, group_size, compute_dtype=torch.float64):
    """v / sqrt(mean(v^2) + eps) * weight with v = x * silu(z), unrounded; argument order as the op."""
    width = x.shape[-1]
    rows = x.to(compute_dtype).reshape(math.prod(x.shape[:-1]), width)
    gates = None if z is None else z.to(compute_dtype).reshape(math.prod(x.shape[:-1]), width)
    out = torch.empty_like(rows)
    for i in range(rows.shape[0]):
        for start in range(0, width, group_size):
            group = slice(start, start + group_size)
            v = rows[i, group]
            if gates is not None:
                v = v * gates[i, group] / (1 + torch.exp(-gates[i, group]))
            out[i, group] = v / torch.sqrt((v * v).mean() + eps) * weight[group].to(compute_dtype)
    return out.reshape(x.shape)
