"""A linear layer for the few rows of a decoding step."""

import torch

from .._load import call, operator


@operator
def skinny_linear(x, weight, bias=None, *, out=None):
    """out = x @ weight.T + bias.

    Accumulated in fp32 and rounded once. A row's bits depend on that row alone: not on the other rows, their number or
    the threads, so a token gives the same bits in a window as by itself. Any number of rows works. No
    gradient.

    Args:
        x: (in_features), (rows, in_features) or (batch, ntokens, in_features), float32, bfloat16 or float16. Last
            stride 1.
        weight: (out_features, in_features), dtype of x. Last stride 1.
        bias: (out_features), dtype of x, or None.
        out: as x with out_features, or None: a new tensor. Shares no memory with the inputs.
    Writes: out.
    Returns: out.
    Raises: ValueError (shapes), TypeError (dtypes, devices, strides, overlap).
    Devices: CPU.
    Source: csrc/skinny_linear. Reference: python_ref/skinny_linear.py.
    """
    if out is None:
        out = x.new_empty((*x.shape[:-1], *weight.shape[:1]))
    call(torch.ops.llamba.skinny_linear.default, x, weight, bias, out)
    return out
