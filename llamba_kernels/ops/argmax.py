"""The greedy token of every row of logits."""

import torch

from .._load import call, operator


@operator
def argmax(logits, *, out=None):
    """out = the index of each row's largest logit, the lowest of ties.

    A row with NaN, or whose maximum is infinite, is refused, as `speculative_accept` refuses it. No gradient.

    Args:
        logits: (vocab), (rows, vocab) or (batch, ntokens, vocab), float32, bfloat16 or float16, vocab at least 1. Last
            stride 1. A masked token is -inf.
        out: () or (rows) or (batch, ntokens), int64, or None: a new tensor. Shares no memory with logits.
    Writes: out.
    Returns: out.
    Raises: ValueError (shapes, NaN), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU.
    Source: csrc/argmax. Reference: python_ref/argmax.py.
    """
    if out is None:
        out = torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    call(torch.ops.llamba.argmax.default, logits, out)
    return out
