"""Rotary position embedding, with the frequency scalings that do not depend on the sequence length."""

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .config import LlambaConfig


def rope_cos_sin(config: LlambaConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, fp32, of shape (*positions.shape, head_dim), for integer positions of any shape."""
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        inv_freq, scale = 1.0 / rope["rope_theta"] ** exponent, 1.0
    else:
        inv_freq, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
    angles = positions.unsqueeze(-1).float() * inv_freq.to(positions.device)
    angles = torch.cat([angles, angles], dim=-1)  # [..., head_dim]
    return angles.cos() * scale, angles.sin() * scale


def apply_rope(t: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate t (..., head_dim) by angles that broadcast against it; the second half pairs with the first."""
    half = t.shape[-1] // 2
    rotated = torch.cat([-t[..., half:], t[..., :half]], dim=-1)
    return t * cos.to(t.dtype) + rotated * sin.to(t.dtype)
