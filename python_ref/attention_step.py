"""Attention of a step's tokens, one (sequence, token, head) at a time."""

import torch


def attention_step_ref(
    q, k, v, k_cache, v_cache, cursor, slots, scale=None, sliding_window=0, parents=None, compute_dtype=torch.float64
):
    """out unrounded, and the caches after the step; argument order as the op, nothing is written."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[2] // k.shape[2]
    out, k_cache, v_cache = torch.zeros_like(q, dtype=compute_dtype), k_cache.clone(), v_cache.clone()
    for b, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        position, _, _, ntokens = cursor[slot, :4].tolist()
        for t in range(ntokens):
            k_cache[slot, :, position + t] = k[b, t]
            v_cache[slot, :, position + t] = v[b, t]
        for t in range(ntokens):
            rows = [*range(position), *(position + i for i in _path(t, None if parents is None else parents[b]))]
            rows = rows[-sliding_window:]  # all of them if 0
            for head in range(q.shape[2]):
                keys, values = (c[slot, head // group, rows].to(compute_dtype) for c in (k_cache, v_cache))
                weights = torch.exp(_centred(scale * keys @ q[b, t, head].to(compute_dtype)))
                out[b, t, head] = weights @ values / weights.sum()
    return out, k_cache, v_cache


def _path(token, parents):
    """The step's tokens that a token sees, oldest first: in a chain all up to it, else its ancestors and itself."""
    if parents is None:
        return list(range(token + 1))
    path = [token]
    while parents[path[0]] >= 0:
        path.insert(0, int(parents[path[0]]))
    return path


def _centred(scores):
    return scores - scores.max()
