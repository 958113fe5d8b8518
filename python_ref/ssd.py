"""Reference of llamba_kernels.models.ssd: the Mamba-2 recurrence, one token after the other, in fp64."""

import torch


def ssd_ref(x, dt, A, B, C, D=None, chunk_size=None, initial_state=None):
    """state = exp(dt * A) * state + dt * x B^T;  y = state C + D * x, per head.

    x (batch, L, x_heads, headdim), dt (batch, L, nheads) after softplus, A (nheads), B (batch, L, B_heads, dstate),
    C (batch, L, C_heads, dstate), D (nheads) or None. chunk_size is ignored: it may not change the result.
    Returns y (batch, L, nheads, headdim) and the last state (batch, nheads, headdim, dstate), both fp64.
    """
    x, dt, A, B, C = (t.double() for t in (x, dt, A, B, C))
    batch, length, x_heads, headdim = x.shape
    nheads, dstate = dt.shape[-1], B.shape[-1]
    heads = torch.arange(nheads)
    x_of = heads // (nheads // x_heads)
    B_of = heads // (nheads // B.shape[2])
    C_of = heads // (nheads // C.shape[2])

    state = torch.zeros(batch, nheads, headdim, dstate).double() if initial_state is None else initial_state.double()
    y = []
    for t in range(length):
        x_t = x[:, t, x_of]  # [batch, nheads, headdim]
        B_t = B[:, t, B_of]  # [batch, nheads, dstate]
        C_t = C[:, t, C_of]  # [batch, nheads, dstate]
        dt_t = dt[:, t, :, None, None]  # [batch, nheads, 1, 1]
        state = torch.exp(dt_t * A[:, None, None]) * state + dt_t * x_t[..., None] * B_t[..., None, :]
        y_t = (state * C_t[..., None, :]).sum(-1)  # [batch, nheads, headdim]
        y.append(y_t if D is None else y_t + D.double()[:, None] * x_t)
    return torch.stack(y, dim=1) if y else x.new_zeros(batch, 0, nheads, headdim), state
