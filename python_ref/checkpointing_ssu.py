"""A window of Mamba-2 tokens from an old state and a ring of inputs, as a plain loop over tokens."""

import torch


def checkpointing_ssu_ref(
    state,
    x_cache,
    B_cache,
    dt_cache,
    ring_start,
    prev_num_accepted_tokens,
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
    cu_seqlens=None,
    max_seqlen=None,
    compute_dtype=torch.float64,
):
    """Argument order and in-place writes as the op. Returns out in compute_dtype, unrounded.

    Step sizes go through the ring in its float32, as everywhere; in float64 rings they are not rounded at all.
    """
    nheads, rows = x_cache.shape[1:3]
    repeat = nheads // B.shape[2]
    out = torch.zeros(x.shape, dtype=compute_dtype)
    decay_rate = A[:, 0, 0].to(compute_dtype)
    for i in range(len(x) if cu_seqlens is None else len(cu_seqlens) - 1):
        batch, span = i, slice(None)
        if cu_seqlens is not None:
            batch, span = 0, slice(int(cu_seqlens[i]), int(cu_seqlens[i + 1]))
        slot = i if state_batch_indices is None else int(state_batch_indices[i])
        count = x[batch, span].shape[0]
        if slot < 0 or slot == pad_slot_id or count == 0:
            continue
        start, previous = int(ring_start[slot]), int(prev_num_accepted_tokens[slot])
        step = dt[batch, span, :, 0].to(compute_dtype)
        if dt_bias is not None:
            step = step + dt_bias[:, 0].to(compute_dtype)
        if dt_softplus:
            step = torch.nn.functional.softplus(step)
        for t in range(count):
            row = (start + previous + t) % rows
            x_cache[slot, :, row] = x[batch, span][t]
            B_cache[slot, :, row] = B[batch, span][t]
            dt_cache[slot, :, row] = step[t].to(dt_cache.dtype)
        current = state[slot].to(compute_dtype)
        for t in range(previous + count):
            row = (start + t) % rows
            if t == previous and previous + count > rows - (x.shape[1] if max_seqlen is None else max_seqlen):
                state[slot] = current.to(state.dtype)
                current = state[slot].to(compute_dtype)
            size = dt_cache[slot, :, row].to(compute_dtype)
            inputs = x_cache[slot, :, row].to(compute_dtype)  # [nheads, headdim]
            columns = B_cache[slot, :, row].to(compute_dtype).repeat_interleave(repeat, 0)  # [nheads, dstate]
            decay = torch.exp(size * decay_rate)
            current = decay[:, None, None] * current + (size[:, None] * inputs)[..., None] * columns[:, None]
            if t < previous:
                continue
            weights = C[batch, span][t - previous].to(compute_dtype).repeat_interleave(repeat, 0)
            y = (current * weights[:, None]).sum(-1)
            if D is not None:
                y = y + D.to(compute_dtype) * inputs
            if z is not None:
                y = y * torch.nn.functional.silu(z[batch, span][t - previous].to(compute_dtype))
            out[batch, span][t - previous] = y
    return out
