"""The step of a Mamba-1 layer's SSM for a window of tokens, from a checkpoint and a few rows."""

import torch

from .._load import call, operator


@operator
def mamba1_verify(
    x,
    dt,
    B,
    C,
    z,
    A,
    D,
    dt_bias,
    checkpoint,
    x_rows,
    dt_rows,
    B_rows,
    cursor,
    slots,
    *,
    B_heads,
    C_heads,
    fold_every,
    parents=None,
    out=None,
):
    """Run every slot's open step through one layer: replay its live rows, then its new tokens, and emit y for these.

        dt    = softplus(dt + dt_bias)
        state = exp(dt A) state + (dt x) B
        out   = (state . C + D x) SiLU(z)

    in float32, rounded once. The state starts at the checkpoint and is stored back only where the step folds; the new
    tokens' x, dt and B are stored as rows, so taking a token back is an edit of the cursor. A token's bits depend on
    the tokens on its own path alone: not on the window, the fold schedule, what was accepted before, the batch, or
    other branches of a tree. A window of K tokens, or a path of K tokens in a tree, equals K one-token calls, bit for
    bit. To keep this with a 16-bit checkpoint the running state is rounded whenever it passes a position that is a
    multiple of fold_every, whether or not it is stored there. Every token is computed twice, once new and once
    folded.

    Args:
        x: (batch, max_ntokens, d_inner) float32, bfloat16 or float16, after the conv (`conv1d_verify`). Last stride 1.
        dt: (batch, max_ntokens, d_inner), dtype of x, raw. Last stride 1.
        B: (batch, max_ntokens, B_heads * dstate), C: (batch, max_ntokens, C_heads * dstate); dtype of x. Last stride 1.
        z: (batch, max_ntokens, d_inner), dtype of x, last stride 1, or None: no gate.
        A: (d_inner, dstate) float32, negative. Last stride 1. D, dt_bias: (d_inner) float32 or None.
        checkpoint: (nslots, d_inner, dstate) float32, bfloat16 or float16; dstate a multiple of 16 up to 64.
            Last stride 1.
        x_rows, dt_rows: (nslots, capacity, d_inner), B_rows: (nslots, capacity, B_heads * dstate); dtype of x. Last
            stride 1.
        cursor: (nslots, 4 + width-1 + capacity) int32, width 2 to 4: every slot must have an open step
            (`cursor_begin`).
        slots: (batch) int32, unique; < 0 is padding.
        B_heads, C_heads: int, divisors of d_inner; channel c reads B head c // (d_inner // B_heads), C likewise.
        fold_every: int, the session's W. Another number that divides the folds, too, is not noticed; with a 16-bit
            checkpoint it changes bits.
        parents: (batch, max_ntokens) int32, last stride 1, a tree: token i follows token parents[i] < i of the step, or
            the committed tokens if that is -1. None: a chain, token i follows token i - 1.
        out: (batch, max_ntokens, d_inner), dtype of x, last stride 1, or None: a new tensor.
    Writes: x_rows, dt_rows and B_rows (the new tokens'), checkpoint (slots whose step folds), out (zero beyond a slot's
        ntokens and for padding).
    Returns: out.
    Raises: ValueError (shapes, numbers, slots), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU, CUDA. There nothing that lies in device memory is refused: a slot without an open step, or whose
        numbers do not fit, is left alone, and its out is zero.
    Source: csrc/mamba1_verify; recurrence of Mamba (arXiv 2312.00752), lazy state of arXiv 2408.15237, Algorithm 2.
    Reference: python_ref/mamba1_verify.py.
    """
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    call(
        torch.ops.llamba.mamba1_verify.default,
        *(x, dt, B, C, z, A, D, dt_bias, checkpoint, x_rows, dt_rows, B_rows, cursor, slots),
        *(B_heads, C_heads, fold_every, parents, out),
    )
    return out
