"""Mamba-1 verify as a plain loop over tokens, and the same layer over a whole sequence in matrix form."""

import torch
from torch.nn.functional import softplus


def mamba1_verify_ref(
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
    B_heads,
    C_heads,
    fold_every=1,
    parents=None,
    compute_dtype=torch.float64,
):
    """Runs the open step of every slot; argument order and in-place writes as the op.

    Returns out [batch, max_ntokens, d_inner] in compute_dtype, unrounded; zero beyond ntokens and for padding. The
    state is rounded to the checkpoint's dtype after every token whose count is a multiple of fold_every, if that has 16
    bits.
    """
    d_inner, dstate = A.shape
    before_live = cursor.shape[1] - 4 - x_rows.shape[1]  # width - 1 rows of the conv tail
    out = torch.zeros(x.shape, dtype=compute_dtype)
    layer = A, dt_bias, B_heads, checkpoint.dtype, fold_every
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        position, live, fold, ntokens = cursor[slot, :4].tolist()
        table = cursor[slot, 4 + before_live :].tolist()
        new_rows = table[live : live + ntokens]
        for rows, new in ((x_rows, x), (dt_rows, dt), (B_rows, B)):
            rows[slot, new_rows] = new[i, :ntokens]
        state = torch.zeros(d_inner, dstate, dtype=compute_dtype)
        if position > live:
            state = checkpoint[slot].to(compute_dtype)
        for t, row in enumerate(table[:live]):
            inputs = x_rows[slot, row], dt_rows[slot, row], B_rows[slot, row]
            state = advance(state, *inputs, position - live + t, *layer)
            if t + 1 == fold:
                checkpoint[slot] = state.to(checkpoint.dtype)
        states, depths = [], []
        for t in range(ntokens):
            parent = t - 1 if parents is None else int(parents[i, t])
            before, depth = (state, 0) if parent < 0 else (states[parent], depths[parent] + 1)
            states.append(advance(before, x[i, t], dt[i, t], B[i, t], position + depth, *layer))
            depths.append(depth)
            y = (states[t] * spread(C[i, t], C_heads, state)).sum(-1)
            if D is not None:
                y = y + D.to(compute_dtype) * x[i, t].to(compute_dtype)
            if z is not None:
                gate = z[i, t].to(compute_dtype)
                y = y * gate * torch.sigmoid(gate)
            out[i, t] = y
    return out


def advance(state, x, dt, B, position, A, dt_bias, B_heads, checkpoint_dtype, fold_every):
    """One token of the recurrence: the state after the token at `position`, in state's dtype."""
    step = dt.to(state.dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(state.dtype)
    step = softplus(step)[:, None]
    state = torch.exp(step * A.to(state.dtype)) * state + step * x.to(state.dtype)[:, None] * spread(B, B_heads, state)
    if checkpoint_dtype.itemsize == 2 and (position + 1) % fold_every == 0:
        state = state.to(checkpoint_dtype).to(state.dtype)
    return state


def spread(heads_of_one, heads, state):
    """[heads * dstate] -> [d_inner, dstate] in state's dtype: channel c reads head c // (d_inner // heads)."""
    each = heads_of_one.to(state.dtype).unflatten(-1, (heads, state.shape[1]))
    return each.repeat_interleave(state.shape[0] // heads, dim=0)


def mamba1_sequence_ref(x, dt, B, C, z, A, D, dt_bias, B_heads, C_heads):
    """The layer over one whole sequence from position 0, in float64, without a recurrence:
    y_t = sum_{s <= t} sum_n exp(A_n sum of dt over s+1..t) C_tn B_sn dt_s x_s + D x_t, gated: one masked matrix per
    channel and state. x, dt, z [length, d_inner], B, C [length, heads * dstate] -> [length, d_inner].
    """
    (length, d_inner), dstate = x.shape, A.shape[1]
    step = softplus(dt.double() + (0 if dt_bias is None else dt_bias.double()))
    elapsed = step.cumsum(0)
    elapsed = (elapsed[:, None] - elapsed[None])[..., None] * A.double()  # [t, s, d_inner, dstate]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[..., None, None]
    B, C = (part.double().unflatten(-1, (heads, dstate)) for part, heads in ((B, B_heads), (C, C_heads)))
    B, C = (part.repeat_interleave(d_inner // part.shape[1], dim=1) for part in (B, C))
    weight = elapsed.masked_fill(~mask, -torch.inf).exp()
    y = torch.einsum("tsdn,tdn,sdn,sd->td", weight, C, B, step * x.double())
    y = y if D is None else y + D.double() * x.double()
    return y if z is None else y * torch.nn.functional.silu(z.double())
