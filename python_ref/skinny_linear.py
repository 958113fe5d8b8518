"""A linear layer as a loop over outputs."""

import math

import torch


def skinny_linear_ref(x, weight, bias=None, compute_dtype=torch.float64):
    """x weight^T + bias, unrounded; argument order as the op."""
    rows = x.to(compute_dtype).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    out = torch.empty(rows.shape[0], weight.shape[0], dtype=compute_dtype)
    for feature in range(weight.shape[0]):
        products = rows * weight[feature].to(compute_dtype)
        out[:, feature] = products.sum(-1)
        if bias is not None:
            out[:, feature] += bias[feature].to(compute_dtype)
    return out.reshape(*x.shape[:-1], weight.shape[0])
