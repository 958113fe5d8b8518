"""Mamba-1's selective scan as a plain loop over tokens, and without a loop from products of decays."""

import torch
from torch.nn.functional import softplus


def selective_scan_ref(
    x,
    dt,
    A,
    B,
    C,
    D=None,
    z=None,
    dt_bias=None,
    B_heads=1,
    C_heads=1,
    dt_softplus=True,
    initial_state=None,
    cu_seqlens=None,
    state_every=None,
    compute_dtype=torch.float64,
):
    """Argument order as the op. Returns y, the final state of every sequence and the states after every state_every-th
    token of a batch entry (None without), all unrounded in compute_dtype; plain torch, so autograd goes through it.
    """
    x, dt, A, B, C, D, z, dt_bias, initial_state = (
        None if t is None else t.to(compute_dtype) for t in (x, dt, A, B, C, D, z, dt_bias, initial_state)
    )
    batch, length, d_inner = x.shape
    step = dt if dt_bias is None else dt + dt_bias
    if dt_softplus:
        step = softplus(step)
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    entries = batch if cu_seqlens is None else 1
    B, C = (_per_channel(t, heads, d_inner) for t, heads in ((B, B_heads), (C, C_heads)))

    rows, interior, finals = [], [], []
    for begin, end in zip(bounds, bounds[1:], strict=False):
        state = x.new_zeros(entries, d_inner, A.shape[1])
        if initial_state is not None:
            state = initial_state if cu_seqlens is None else initial_state[len(finals)].unsqueeze(0)
        for t in range(begin, end):
            decay = torch.exp(step[:, t, :, None] * A)
            state = decay * state + (step[:, t] * x[:, t]).unsqueeze(-1) * B[:, t]
            y = (state * C[:, t]).sum(-1)
            if D is not None:
                y = y + D * x[:, t]
            rows.append(y if z is None else y * z[:, t] * torch.sigmoid(z[:, t]))
            if state_every and (t + 1) % state_every == 0:
                interior.append(state)
        finals.append(state)
    y = torch.stack(rows, 1) if rows else x
    final_state = torch.cat(finals) if finals else x.new_zeros(0, *A.shape)
    none = x.new_zeros(batch, 0, *A.shape)
    return y, final_state, (torch.stack(interior, 1) if interior else none) if state_every else None


def _per_channel(t, heads, d_inner):
    """[batch, L, heads * dstate] -> [batch, L, d_inner, dstate]."""
    return t.unflatten(-1, (heads, -1)).repeat_interleave(d_inner // heads, 2)


def selective_scan_closed(x, step, A, B, C):
    """y without D and gate, for step sizes after softplus, one B and C head and zero initial state: every token's y as
    the sum over all tokens before it, decayed by the exponential of the step sizes between them.
    """
    total = torch.cumsum(step, 1)  # [batch, L, d_inner]
    between = total.unsqueeze(2) - total.unsqueeze(1)  # [batch, t, s, d_inner]
    past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[:, :, None, None]
    decay = torch.exp(between.unsqueeze(-1) * A).where(past, 0)
    return torch.einsum("btscn,bsc,bsn,btn->btc", decay, step * x, B, C)
