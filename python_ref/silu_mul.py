"""SiLU of one half of an MLP's projection times the other, element by element."""

import math

import torch


def silu_mul_ref(gate, up):
    """gate / (1 + exp(-gate)) * up in fp64, unrounded; argument order as the op."""
    pairs = zip(gate.double().flatten().tolist(), up.double().flatten().tolist(), strict=True)
    products = [g * _sigmoid(g) * u for g, u in pairs]
    return torch.tensor(products, dtype=torch.float64).view(gate.shape)


def _sigmoid(x):
    """Without overflow on either side."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
