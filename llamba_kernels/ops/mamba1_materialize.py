"""The state of a Mamba-1 layer at the current position: what prefix caches keep and exports write."""

import torch

from .._load import call, operator


@operator
def mamba1_materialize(
    A,
    dt_bias,
    checkpoint,
    rows,
    x_rows,
    dt_rows,
    B_rows,
    cursor,
    slots,
    *,
    B_heads,
    fold_every,
    state=None,
    tail=None,
):
    """The recurrent state after all committed tokens of each slot, and the raw rows that the next conv needs.

    The checkpoint is replayed over the live rows, by the arithmetic of `mamba1_verify`; nothing is changed. Given to
    `state_import` with nheads 1 (state.unsqueeze(1), checkpoint.unsqueeze(1)), decoding goes on with the same bits if
    the checkpoint is float32, or if the position is a multiple of fold_every (there a 16-bit checkpoint is the state
    itself).

    Args:
        A, dt_bias, checkpoint, x_rows, dt_rows, B_rows, cursor, B_heads, fold_every: as `mamba1_verify`.
        rows: (nslots, capacity, x_dim), dtype of x_rows, last stride 1: the raw rows of `conv1d_verify`.
        slots: (batch) int32, unique, without an open step; < 0 is padding.
        state, tail: what to write to, last stride 1, or None: new tensors.
    Writes: state, tail.
    Returns: state, (batch, d_inner, dstate) float32; tail, (batch, width - 1, x_dim), dtype of rows, oldest row first.
        Zero for padding and before the first token.
    Raises: ValueError (shapes, numbers, slots), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU, CUDA. There a slot that a CPU would refuse gives a zero state and a zero tail.
    Source: csrc/mamba1_materialize. Reference: python_ref/mamba1_materialize.py.
    """
    batch = slots.shape[:1]
    if state is None:
        state = torch.empty((*batch, *checkpoint.shape[1:]), dtype=torch.float32, device=x_rows.device)
    if tail is None:
        before = [max(columns - 4 - x_rows.shape[1], 0) for columns in cursor.shape[1:2]]  # width - 1
        tail = torch.empty((*batch, *before, *rows.shape[2:]), dtype=rows.dtype, device=rows.device)
    call(
        torch.ops.llamba.mamba1_materialize.default,
        *(A, dt_bias, checkpoint, rows, x_rows, dt_rows, B_rows, cursor, slots),
        *(B_heads, fold_every, state, tail),
    )
    return state, tail
