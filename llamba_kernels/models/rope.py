"""Rotary position embedding, with the frequency scalings that do not depend on the sequence length."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

if TYPE_CHECKING:
    from .config import LlambaConfig


def rope_cos_sin(config: "LlambaConfig", positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32, of shape (*positions.shape, rotary_dim), for integer positions of any shape."""
    inv_freq, scale = inverse_frequencies(config)
    angles = positions.unsqueeze(-1).float() * inv_freq.to(positions.device)
    angles = torch.cat([angles, angles], dim=-1)  # [..., rotary_dim]
    return angles.cos() * scale, angles.sin() * scale


def inverse_frequencies(config: "LlambaConfig") -> tuple[Tensor, float]:
    """Radians per token of each rotated pair of channels, (rotary_dim / 2), on the CPU, and a factor of cos and sin."""
    rope, dim = config.rope_parameters, config.rotary_dim
    with torch.device("cpu"):
        if rope["rope_type"] == "default":
            exponent = torch.arange(0, dim, 2, dtype=torch.float32) / max(dim, 1)
            return 1.0 / rope["rope_theta"] ** exponent, 1.0
        rotated = copy.copy(config)
        rotated.head_dim = dim  # transformers' functions read a head's size, and scale all of it
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](rotated)


def apply_rope(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of t (..., head_dim) by angles (..., rotary_dim) that broadcast against it.

    Of the rotated channels the second half pairs with the first; the others stay.
    """
    dim = cos.shape[-1]
    rotated, rest = t[..., :dim], t[..., dim:]
    turned = torch.cat([-rotated[..., dim // 2 :], rotated[..., : dim // 2]], dim=-1)
    rotated = rotated * cos.to(t.dtype) + turned * sin.to(t.dtype)
    return rotated if dim == t.shape[-1] else torch.cat([rotated, rest], dim=-1)
