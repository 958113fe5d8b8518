"""selective_state_update as a plain loop over sequences and tokens."""

import torch
from torch.nn.functional import silu, softplus


def selective_state_update_ref(
    state,
    x,
    dt,
    A,
    B,
    C,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    state_batch_indices=None,
    pad_slot_id=-1,
    disable_state_update=False,
    intermediate_states_buffer=None,
    intermediate_state_indices=None,
    dst_state_batch_indices=None,
    cu_seqlens=None,
    num_accepted_tokens=None,
    retrieve_parent_token=None,
    compute_dtype=torch.float64,
):
    """Returns out, of x's shape, in compute_dtype and unrounded; state and buffer are written in their own dtype."""
    has_heads, buffer = state.dim() == 4, intermediate_states_buffer
    if not has_heads:
        state, buffer = state.unsqueeze(1), None if buffer is None else buffer.unsqueeze(2)
        A, D, dt_bias = (None if p is None else p.unsqueeze(0) for p in (A, D, dt_bias))
        x, dt, B, C, z = (None if t is None else t.unsqueeze(-2) for t in (x, dt, B, C, z))
    out = torch.zeros(x.shape, dtype=compute_dtype)
    wide = [None if t is None else t.to(compute_dtype) for t in (A, D, dt_bias)]
    src, dst = (as_columns(t) for t in (state_batch_indices, dst_state_batch_indices))
    for i in range(len(x) if cu_seqlens is None else len(cu_seqlens) - 1):
        if cu_seqlens is not None:
            tokens = [(row,) for row in range(int(cu_seqlens[i]), int(cu_seqlens[i + 1]))]
        else:
            tokens = [(i,)] if x.dim() == 3 else [(i, t) for t in range(x.shape[1])]
        column = 0 if num_accepted_tokens is None else max(int(num_accepted_tokens[i]) - 1, 0)
        slot = i if src is None else int(src[i, column])
        padding = slot < 0 or (src is not None and slot == pad_slot_id)
        current = torch.zeros(state.shape[1:], dtype=compute_dtype) if padding else state[slot].to(compute_dtype)
        row = slot if intermediate_state_indices is None else int(intermediate_state_indices[i])
        for t, at in enumerate(tokens):
            buffered = buffer is not None and not padding and row >= 0
            parent = int(retrieve_parent_token[i, t]) if retrieve_parent_token is not None and t else -1
            if buffered and 0 <= parent < t:
                current = buffer[row, parent].to(compute_dtype)
            inputs = [None if each is None else each[at].to(compute_dtype) for each in (x, dt, B, C, z)]
            current, out[at] = advance(current, *inputs, *wide, dt_softplus)
            if buffered:
                buffer[row, t] = current.to(buffer.dtype)
            target = slot if t + 1 == len(tokens) else -1
            if num_accepted_tokens is not None or (dst is not None and dst.shape[1] > 1):
                target = int((src if dst is None else dst)[i, t])
            elif dst is not None and t + 1 == len(tokens):
                target = int(dst[i, 0])
            explicit = src is not None or dst is not None
            if not (padding or disable_state_update or target < 0 or (explicit and target == pad_slot_id)):
                state[target] = current.to(state.dtype)
    return out if has_heads else out.squeeze(-2)


def as_columns(indices):
    return indices[:, None] if indices is not None and indices.dim() == 1 else indices


def advance(state, x, dt, B, C, z, A, D, dt_bias, dt_softplus):
    """One token: the state after it, and its output."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = softplus(dt) if dt_softplus else dt
    B, C = (t.repeat_interleave(len(state) // len(t), 0)[:, None, :] for t in (B, C))
    state = torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B
    y = (state * C).sum(-1) + (0 if D is None else D * x)
    return state, y if z is None else y * silu(z)
