"""The state of a Mamba-2 layer at the current position: what prefix caches keep and exports write."""

import torch

from .._load import call, operator


@operator
def materialize(
    conv_weight,
    conv_bias,
    A,
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
    out=None,
):
    """The recurrent state after all committed tokens of each slot, and the raw rows that the next conv needs.

    The checkpoint is replayed over the live rows, by the arithmetic of `mamba2_verify`; nothing is changed. Given to
    `state_import`, decoding goes on with the same bits if the checkpoint is float32, or if the position is a multiple
    of fold_every (there a 16-bit checkpoint is the state itself).

    Args:
        conv_weight, conv_bias, A, dt_bias, checkpoint, rows, dt_rows, cursor, x_heads, B_heads, C_heads, fold_every: as
            `mamba2_verify`.
        slots: (batch) int32, unique, without an open step; < 0 is padding.
        out: (state, tail) to write to, or None: new tensors. Last stride 1.
    Writes: out.
    Returns: state, (batch, nheads, headdim, dstate) float32; tail, (batch, width - 1, conv_dim), dtype of rows, oldest
        row first. Zero for padding and before the first token.
    Raises: ValueError (shapes, numbers, slots), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU, CUDA. There a slot that a CPU would refuse gives a zero state and a zero tail.
    Source: csrc/materialize. Reference: python_ref/materialize.py.
    """
    if out is None:
        batch, before = slots.shape[:1], [max(width - 1, 0) for width in conv_weight.shape[1:2]]
        state = torch.empty((*batch, *checkpoint.shape[1:]), dtype=torch.float32, device=rows.device)
        tail = torch.empty((*batch, *before, *rows.shape[2:]), dtype=rows.dtype, device=rows.device)
        out = state, tail
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"materialize: out must be a pair, (state, tail), or None; got {type(out).__name__}")
    call(
        torch.ops.llamba.materialize.default,
        *(conv_weight, conv_bias, A, dt_bias, checkpoint, rows, dt_rows, cursor, slots),
        *(x_heads, B_heads, C_heads, fold_every, *out),
    )
    return out
