"""Inputs of selective_scan that tests and benchmarks share."""

import torch

from .ops import selective_scan


def make_selective_scan_inputs(
    batch, length, d_inner, dstate=16, B_heads=1, C_heads=1, gate=True, bias=True, dtype=torch.float32
):
    """Arguments of selective_scan by name. A as at Mamba-1's start, dt around 0.001 to 0.1 after softplus.

    bias: with D and dt_bias. B and C are slices of one projection, as x_proj gives them.
    """
    projection = torch.randn(batch, length, 3 + (B_heads + C_heads) * dstate).to(dtype)
    B, C = projection[..., 3:].split([B_heads * dstate, C_heads * dstate], -1)
    return {
        "x": torch.randn(batch, length, d_inner).to(dtype),
        "dt": (torch.randn(batch, length, d_inner) - (0 if bias else 5)).to(dtype),
        "A": -torch.arange(1, dstate + 1.0) * (0.5 + torch.rand(d_inner, 1)),
        "B": B,
        "C": C,
        "D": torch.randn(d_inner) if bias else None,
        "z": torch.randn(batch, length, d_inner).to(dtype) if gate else None,
        "dt_bias": -7 + 5 * torch.rand(d_inner) if bias else None,
        "B_heads": B_heads,
        "C_heads": C_heads,
    }


def selective_scan_results(inputs):
    """y, the final state, and the gradients of the sum of their means in every input, by name."""
    wanted = {name: value.requires_grad_() for name, value in inputs.items() if torch.is_tensor(value)}
    y, state = selective_scan(**inputs, return_final_state=True)
    gradients = torch.autograd.grad((y.mean(), state.mean()), list(wanted.values()))
    return dict(zip(("y", "state", *wanted), (y.detach(), state.detach(), *gradients), strict=True))
