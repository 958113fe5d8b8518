"""The Mamba-2 recurrence (SSD) over whole sequences, in chunks of matrix products, with autograd.

    state[t] = exp(dt[t] * A) * state[t-1] + dt[t] * x[t] B[t]^T          y[t] = state[t] C[t] + D * x[t]

Reference: python_ref/ssd.py, the same in a loop over tokens.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    chunk_size: int,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over L tokens; any L, also 0 and lengths that are no multiple of `chunk_size`.

    Args:
        x: (batch, L, x_heads, headdim). dt: (batch, L, nheads), after softplus. A: (nheads), negative.
        B: (batch, L, B_heads, dstate). C: (batch, L, C_heads, dstate). D: (nheads) or None.
        initial_state: (batch, nheads, headdim, dstate) or None for zero.
        x_heads, B_heads and C_heads divide nheads; head h reads x head h // (nheads // x_heads), and so on.
    Returns:
        y (batch, L, nheads, headdim) in x's dtype and the state after the last token,
        (batch, nheads, headdim, dstate). Sums are in fp32, under autocast too (fp64 if x is fp64).
    """
    with torch.autocast(x.device.type, enabled=False):
        acc = torch.promote_types(x.dtype, torch.float32)
        wide = (None if t is None else t.to(acc) for t in (x, dt, A, B, C, D, initial_state))
        y, state = _ssd(*wide, chunk_size)
        return y.to(x.dtype), state


def _ssd(x, dt, A, B, C, D, initial_state, chunk_size):
    batch, length, x_heads, headdim = x.shape
    nheads, dstate = dt.shape[-1], B.shape[-1]
    state = x.new_zeros(batch, nheads, headdim, dstate) if initial_state is None else initial_state
    if length == 0:
        return x.new_zeros(batch, 0, nheads, headdim), state

    # Zero dt leaves the state alone, so padding the last chunk with zeros changes nothing.
    chunk_size = min(chunk_size, length)
    x, dt, B, C = (_in_chunks(t, chunk_size) for t in (x, dt, B, C))  # [batch, chunks, Q, heads, ...]

    # Up to and including each token of the chunk.
    log_decay = torch.cumsum(dt * A, dim=2).transpose(2, 3)  # [batch, chunks, nheads, Q]
    dt_x = dt.unsqueeze(-1) * _repeat(x, nheads)  # [batch, chunks, Q, nheads, headdim]
    y = _within_chunks(dt_x, log_decay, B, C)

    # What each chunk adds to the state, with every token decayed to the chunk's end.
    to_end = torch.exp(log_decay[..., -1:] - log_decay).transpose(2, 3)  # [batch, chunks, Q, nheads]
    added = _outer(dt_x * to_end.unsqueeze(-1), B)  # [batch, chunks, nheads, headdim, dstate]
    chunk_decay = torch.exp(log_decay[..., -1])[..., None, None]  # [batch, chunks, nheads, 1, 1]
    starts = []
    for chunk in range(x.shape[1]):
        starts.append(state)
        state = chunk_decay[:, chunk] * state + added[:, chunk]

    from_start = torch.exp(log_decay).transpose(2, 3).unsqueeze(-1)  # [batch, chunks, Q, nheads, 1]
    y = y + from_start * _read(torch.stack(starts, dim=1), C)
    if D is not None:
        y = y + D[:, None] * _repeat(x, nheads)
    return y.flatten(1, 2)[:, :length], state


def _within_chunks(dt_x, log_decay, B, C):
    """y of each token from the tokens of its own chunk: (C B^T * decay) applied to dt * x."""
    nheads, Q = log_decay.shape[-2:]
    # Scores once per distinct (B head, C head) pair; only the decay differs between the heads that share one.
    pairs = math.lcm(B.shape[3], C.shape[3])
    scores = torch.einsum("bcqhn,bckhn->bchqk", _repeat(C, pairs), _repeat(B, pairs))
    future = torch.ones(Q, Q, dtype=torch.bool, device=B.device).triu(1)
    # Masked before the exponential: above the diagonal the difference is positive and would overflow.
    decay = (log_decay.unsqueeze(-1) - log_decay.unsqueeze(-2)).masked_fill(future, -torch.inf).exp()
    weights = (scores.unsqueeze(3) * decay.unflatten(2, (pairs, nheads // pairs))).flatten(2, 3)
    return torch.einsum("bchqk,bckhp->bcqhp", weights, dt_x)


def _outer(x, B):
    """Sum over a chunk's tokens of x B^T per head: the heads that share a B head are rows of one product."""
    rows = x.unflatten(3, (B.shape[3], -1))  # [batch, chunks, Q, B_heads, r, headdim]
    return torch.einsum("bcqgrp,bcqgn->bcgrpn", rows, B).flatten(2, 3)


def _read(state, C):
    """state C per token and head, before decay; the heads that share a C head are columns of one product."""
    columns = state.unflatten(2, (C.shape[3], -1))  # [batch, chunks, C_heads, r, headdim, dstate]
    return torch.einsum("bcgrpn,bcqgn->bcqgrp", columns, C).flatten(3, 4)


def _in_chunks(t, chunk_size):
    """[batch, L, ...] -> [batch, chunks, chunk_size, ...], the last chunk filled up with zeros."""
    missing = -t.shape[1] % chunk_size
    if missing:
        t = F.pad(t, (0, 0) * (t.dim() - 2) + (0, missing))
    return t.unflatten(1, (-1, chunk_size))


def _repeat(t, heads):
    """[..., h, d] -> [..., heads, d]: consecutive heads share one of t's; t itself where nothing is shared."""
    repeats = heads // t.shape[-2]
    return t if repeats == 1 else t.repeat_interleave(repeats, dim=-2)
