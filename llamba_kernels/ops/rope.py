"""Rotary position embedding of the queries and keys of a few tokens."""

import torch

from .._load import call, operator


@operator
def rope(x, cos, sin, positions, *, interleaved=False, out=None):
    """Rotate the pairs (a, b) of every head by the angles of its token's position.

        out = (a cos - b sin, a sin + b cos)

    Pair i is elements i and i + rotary_dim / 2 (half split, as Llama), or 2 i and 2 i + 1 (interleaved). Elements from
    rotary_dim on are copied. Computed in fp32 and rounded once. A token's bits depend on that token alone. No gradient.

    Args:
        x: (batch, ntokens, nheads, head_dim), float32, bfloat16 or float16, such as the adjacent q and k columns of a
            fused projection. Last stride 1.
        cos, sin: (npositions, rotary_dim / 2) float32, rotary_dim at most head_dim. Last stride 1.
        positions: (batch, ntokens) int32, below npositions; < 0 is padding: the token's out is zero. Last stride 1.
        interleaved: bool, which elements are a pair.
        out: as x, or None: a new tensor. May be x itself; else shares no memory with the others.
    Writes: out.
    Returns: out.
    Raises: ValueError (shapes, positions), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
        On CUDA positions is not checked: a token whose position is not below npositions is as padding.
    Devices: CPU, CUDA.
    Source: csrc/rope; RoFormer, arXiv 2104.09864. Reference: python_ref/rope.py.
    """
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    call(torch.ops.llamba.rope.default, x, cos, sin, positions, interleaved, out)
    return out
