"""Inputs that tests and benchmarks share."""

import torch


def make_gated_rms_norm_inputs(shape, width, group_size=None, gate=True, dtype=torch.float32):
    """Positional arguments of gated_rms_norm; x and z are (*shape, width)."""
    x = torch.randn(*shape, width).to(dtype)
    z = torch.randn(*shape, width).to(dtype) if gate else None
    weight = (1 + 0.1 * torch.randn(width)).to(dtype)
    return x, z, weight, 1e-5, group_size or width
