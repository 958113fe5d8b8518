"""mamba1_materialize on slots: the recurrence of mamba1_verify_ref over the live rows alone."""

import torch

from .mamba1_verify import advance


def mamba1_materialize_ref(
    A,
    dt_bias,
    checkpoint,
    rows,
    x_rows,
    dt_rows,
    B_rows,
    cursor,
    slots,
    B_heads,
    fold_every=1,
    compute_dtype=torch.float64,
):
    """(state [batch, d_inner, dstate] in compute_dtype, tail [batch, width-1, x_dim]); argument order as the op."""
    before_live, batch = cursor.shape[1] - 4 - rows.shape[1], slots.shape[0]
    states = torch.zeros(batch, *A.shape, dtype=compute_dtype)
    tails = torch.zeros(batch, before_live, rows.shape[-1], dtype=rows.dtype)
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        position, live = cursor[slot, :2].tolist()
        table = cursor[slot, 4:].tolist()
        state = checkpoint[slot].to(compute_dtype) if position > live else states[i]
        for t, row in enumerate(table[before_live : before_live + live]):
            inputs = x_rows[slot, row], dt_rows[slot, row], B_rows[slot, row]
            state = advance(state, *inputs, position - live + t, A, dt_bias, B_heads, checkpoint.dtype, fold_every)
        states[i] = state
        for t, row in enumerate(table[live : live + before_live]):
            if row >= 0:
                tails[i, t] = rows[slot, row]
    return states, tails
