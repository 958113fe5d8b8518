"""materialize and state_import on slots: the recurrence of mamba2_verify_ref over the live rows alone."""

import torch

from .mamba2_verify import advance


def materialize_ref(
    conv_weight,
    conv_bias,
    A,
    dt_bias,
    checkpoint,
    rows,
    dt_rows,
    cursor,
    slots,
    x_heads,
    B_heads,
    C_heads,
    fold_every=1,
    compute_dtype=torch.float64,
):
    """(state [batch, nheads, headdim, dstate] in compute_dtype, tail [batch, width-1, conv_dim]); order as the op."""
    _, nheads, headdim, dstate = checkpoint.shape
    width, batch = conv_weight.shape[1], slots.shape[0]
    states = torch.zeros(batch, nheads, headdim, dstate, dtype=compute_dtype)
    tails = torch.zeros(batch, width - 1, rows.shape[-1], dtype=rows.dtype)
    layer = (conv_weight, conv_bias, A, dt_bias), (x_heads, B_heads, C_heads), checkpoint.dtype, fold_every
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        position, live = cursor[slot, :2].tolist()
        table = cursor[slot, 4:].tolist()
        raw = torch.stack([torch.zeros_like(rows[0, 0]) if r < 0 else rows[slot, r] for r in table[: width - 1 + live]])
        state = checkpoint[slot].to(compute_dtype) if position > live else states[i]
        for t in range(live):
            raw_dt = dt_rows[slot, table[width - 1 + t]]
            state, _, _ = advance(state, raw[t : t + width], raw_dt, position - live + t, *layer)
        states[i] = state
        tails[i] = raw[live:]
    return states, tails


def state_import_ref(state, tail, checkpoint, rows, cursor, slots):
    """In place; argument order as the op. The slots stand at their position without live rows."""
    for i, slot in enumerate(slots.tolist()):
        if slot < 0 or int(cursor[slot, 0]) == 0:
            continue
        checkpoint[slot] = state[i].to(checkpoint.dtype)
        for t, row in enumerate(cursor[slot, 4 : 4 + tail.shape[1]].tolist()):
            if row >= 0:
                rows[slot, row] = tail[i, t]
