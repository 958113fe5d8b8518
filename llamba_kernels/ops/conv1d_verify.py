"""The causal conv of a Mamba-1 layer for a window of tokens, from a few rows: what its dt, B and C depend on."""

import torch

from .._load import call, operator


@operator
def conv1d_verify(x, conv_weight, conv_bias, rows, cursor, slots, *, x_heads, headdim, parents=None, out=None):
    """SiLU(conv(x) + conv_bias) of every slot's open step; the new tokens' raw x are stored.

    The conv of a token goes over the last width tokens on its path: committed ones from the rows, earlier ones of the
    step from x. Taking a token back is an edit of the cursor. A token's bits depend on these inputs alone: a window of
    K tokens, or a path of K tokens in a tree, equals K one-token calls, bit for bit.

    Args:
        x: (batch, max_ntokens, x_heads * headdim) float32, bfloat16 or float16, raw. Last stride 1.
        conv_weight: (dim, width), conv_bias: (dim) or None; dtype of x. dim = nheads * headdim; width 2 to 4.
        rows: (nslots, capacity, x_heads * headdim), dtype of x. Last stride 1.
        cursor: (nslots, 4 + width-1 + capacity) int32: every slot must have an open step (`cursor_begin`).
        slots: (batch) int32, unique; < 0 is padding.
        x_heads: int, a divisor of nheads; head h of out reads head h // (nheads // x_heads) of x.
        headdim: int, channels of a head.
        parents: (batch, max_ntokens) int32, last stride 1, a tree: token i follows token parents[i] < i of the step, or
            the committed tokens if that is -1. None: a chain, token i follows token i - 1.
        out: (batch, max_ntokens, dim), dtype of x, last stride 1, or None: a new tensor.
    Writes: rows (the new tokens'), out (zero beyond a slot's ntokens and for padding).
    Returns: out.
    Raises: ValueError (shapes, numbers, slots), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU, CUDA. There nothing that lies in device memory is refused: a slot without an open step, or whose
        numbers do not fit, is left alone, and its out is zero.
    Source: csrc/conv1d_verify. Reference: python_ref/conv1d_verify.py.
    """
    if out is None:
        out = torch.empty((*x.shape[:2], *conv_weight.shape[:1]), dtype=x.dtype, device=x.device)
    tensors = x, conv_weight, conv_bias, rows, cursor, slots
    call(torch.ops.llamba.conv1d_verify.default, *tensors, x_heads, headdim, parents, out)
    return out
