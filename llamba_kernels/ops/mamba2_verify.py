"""The step of a Mamba-2 layer: causal conv and SSM for a window of tokens, from a checkpoint and a few rows."""

import torch

from .._load import call, operator

ALGORITHMS = {"recurrent": 0, "matmul": 1}  # llamba_algorithm in csrc/include/llamba.h


def choose_algorithm(device_type, dtype, capacity, width, fold_every):
    """The algorithm of a session: one for all its steps, whatever their tokens and batch.

    The recurrence costs three instructions per state element and token, replayed ones included; the closed form a fixed
    six (it splits the state for the tensor cores) and next to nothing per token, so it pays from windows of four. Its
    shared memory holds 48 live and new rows on every GPU. float32 activations would take eight products for each one.
    capacity, width, fold_every: of the session; they bound its window.
    """
    rows = capacity - (width - 1)
    max_window = (rows - (fold_every - 1)) // 2
    pays = device_type == "cuda" and dtype != torch.float32 and 4 <= max_window <= 16 and rows <= 48
    return "matmul" if pays else "recurrent"


@operator
def mamba2_verify(
    xBC,
    dt,
    conv_weight,
    conv_bias,
    A,
    D,
    dt_bias,
    checkpoint,
    rows,
    dt_rows,
    cursor,
    slots,
    *,
    x_heads,
    B_heads,
    C_heads,
    fold_every,
    algorithm="auto",
    parents=None,
    out=None,
):
    """Run every slot's open step through one layer: replay its live rows, then its new tokens, and emit y for these.

        x, B, C = SiLU(conv(xBC) + conv_bias), rounded to the activation dtype;   dt = softplus(dt + dt_bias)
        state   = exp(dt A) state + (dt x) B
        out     = state . C + D x

    The state starts at the checkpoint and is stored back only where the step folds; the new tokens' raw rows are
    stored, so taking a token back is an edit of the cursor. With the recurrent algorithm a token's bits depend on the
    tokens on its own path alone: not on the window, the fold schedule, what was accepted before, the batch, or other
    branches of a tree. A window of K tokens, or a path of K tokens in a tree, equals K one-token calls, bit for bit. To
    keep this with a 16-bit checkpoint the running state is rounded whenever it passes a position that is a multiple of
    fold_every, whether or not it is stored there.

    Args:
        xBC: (batch, max_ntokens, conv_dim) float32, bfloat16 or float16, raw columns of in_proj: x, B, C;
            conv_dim = x_heads * headdim + (B_heads + C_heads) * dstate. Last stride 1.
        dt: (batch, max_ntokens, nheads), dtype of xBC, raw. Last stride 1.
        conv_weight: (conv_dim, width), conv_bias: (conv_dim) or None; dtype of xBC. width 2 to 4.
        A: (nheads) float32, negative. D, dt_bias: (nheads) float32 or None.
        checkpoint: (nslots, nheads, headdim, dstate) float32, bfloat16 or float16; dstate a multiple of 16 up to 256.
            Last stride 1.
        rows: (nslots, capacity, conv_dim), dt_rows: (nslots, capacity, nheads); dtype of xBC. Last stride 1.
        cursor: (nslots, 4 + width-1 + capacity) int32: every slot must have an open step (`cursor_begin`).
        slots: (batch) int32, unique; < 0 is padding.
        x_heads, B_heads, C_heads: int, divisors of nheads; head h reads x head h // (nheads // x_heads), and so on.
        fold_every: int, the session's W. Another number that divides the folds, too, is not noticed; with a 16-bit
            checkpoint it changes bits.
        algorithm: "recurrent": what is said above. "matmul" (CUDA): the closed form on tensor cores, as exact as the
            same formula in PyTorch, whose bits depend on the window. "auto": `choose_algorithm`, by session and device.
        parents: (batch, max_ntokens) int32, last stride 1, a tree: token i follows token parents[i] < i of the step, or
            the committed tokens if that is -1. None: a chain, token i follows token i - 1.
        out: (batch, max_ntokens, nheads, headdim), dtype of xBC, last stride 1, or None: a new tensor.
    Writes: rows and dt_rows (the new tokens'), checkpoint (slots whose step folds), out (zero beyond a slot's ntokens
        and for padding).
    Returns: out.
    Raises: ValueError (shapes, numbers, slots), TypeError (dtypes, devices, strides). Nothing is written then.
    Devices: CPU, CUDA. There nothing that lies in device memory is refused: a slot without an open step, or whose
        numbers do not fit, is left alone, and its out is zero.
    Source: csrc/mamba2_verify; recurrence of Mamba-2 (arXiv 2405.21060), lazy state of arXiv 2408.15237, Algorithm 2.
    Reference: python_ref/mamba2_verify.py.
    """
    if algorithm not in ("auto", *ALGORITHMS):
        raise ValueError(f"mamba2_verify: algorithm must be auto, recurrent or matmul; got {algorithm!r}")
    if algorithm == "auto":
        algorithm = "recurrent"
        if xBC.is_cuda and rows.dim() == 3 and conv_weight.dim() == 2:  # other ranks are refused below
            sizes = rows.shape[1], conv_weight.shape[1]
            algorithm = choose_algorithm(xBC.device.type, xBC.dtype, *sizes, fold_every)
    if out is None:
        out = torch.empty((*xBC.shape[:2], *checkpoint.shape[1:3]), dtype=xBC.dtype, device=xBC.device)
    call(
        torch.ops.llamba.mamba2_verify.default,
        xBC,
        dt,
        conv_weight,
        conv_bias,
        A,
        D,
        dt_bias,
        checkpoint,
        rows,
        dt_rows,
        cursor,
        slots,
        x_heads,
        B_heads,
        C_heads,
        fold_every,
        ALGORITHMS[algorithm],
        parents,
        out,
    )
    return out
