"""What a layer remembers of every slot, by its kind."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .models.config import LlambaConfig


@dataclass
class Mamba2Buffers:
    checkpoint: Tensor  # [nslots, nheads, headdim, dstate] fp32, bf16 or fp16
    rows: Tensor  # [nslots, capacity, conv_dim] raw xBC of in_proj
    dt_rows: Tensor  # [nslots, capacity, nheads] raw dt of in_proj


@dataclass
class Mamba1Buffers:
    checkpoint: Tensor  # [nslots, d_inner, dstate] fp32, bf16 or fp16
    rows: Tensor  # [nslots, capacity, x_dim] raw x, before the convolution
    x_rows: Tensor  # [nslots, capacity, d_inner] x after the convolution
    dt_rows: Tensor  # [nslots, capacity, d_inner] raw dt, before its bias
    B_rows: Tensor  # [nslots, capacity, B_heads * dstate]


@dataclass
class AttentionBuffers:
    k: Tensor  # [nslots, kv_heads, max_tokens, head_dim], after RoPE
    v: Tensor  # [nslots, kv_heads, max_tokens, head_dim]


@dataclass
class NoBuffers:
    """Of a layer that mixes no tokens."""


Buffers = Mamba1Buffers | Mamba2Buffers | AttentionBuffers | NoBuffers


def make_buffers(
    config: LlambaConfig,
    kind: str,
    nslots: int,
    max_tokens: int,
    capacity: int,
    dtype: torch.dtype,
    checkpoint_dtype: torch.dtype,
) -> Buffers:
    """Of a layer of this kind. capacity: rows per slot. dtype: of rows, keys and values."""

    def rows(width):
        return torch.zeros(nslots, capacity, width, dtype=dtype)

    def state(*shape):
        return torch.zeros(nslots, *shape, dtype=checkpoint_dtype)

    if kind == "mamba2":
        return Mamba2Buffers(
            checkpoint=state(config.mamba_num_heads, config.mamba_head_dim, config.mamba_d_state),
            rows=rows(config.mamba_conv_dim),
            dt_rows=rows(config.mamba_num_heads),
        )
    if kind == "mamba1":
        return Mamba1Buffers(
            checkpoint=state(config.mamba1_d_inner, config.mamba1_d_state),
            rows=rows(config.mamba1_x_dim),
            x_rows=rows(config.mamba1_d_inner),
            dt_rows=rows(config.mamba1_d_inner),
            B_rows=rows(config.mamba1_B_heads * config.mamba1_d_state),
        )
    if kind == "attention":
        kv = nslots, config.num_key_value_heads, max_tokens, config.head_dim
        return AttentionBuffers(k=torch.zeros(kv, dtype=dtype), v=torch.zeros(kv, dtype=dtype))
    return NoBuffers()
