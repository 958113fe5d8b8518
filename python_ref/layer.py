"""What all layers of the whole-model reference share."""

import torch


def linear(u, layer, name):
    return layer[f"{name}.weight"] @ u + layer.get(f"{name}.bias", 0)


def norm(v, weight, eps):
    return v / torch.sqrt((v * v).mean() + eps) * weight


def silu(v):
    return v * torch.sigmoid(v)


def softplus(v):
    return torch.logaddexp(v, torch.zeros_like(v))


def convolve(layer, past):
    """SiLU(conv + bias) of the newest of the past channels [dim]; before the first token there is nothing."""
    taps = reversed(layer["conv1d.weight"][:, 0].T)  # the newest token's first
    total = sum(tap * earlier for tap, earlier in zip(taps, reversed(past), strict=False))
    return silu(total + layer.get("conv1d.bias", 0))
