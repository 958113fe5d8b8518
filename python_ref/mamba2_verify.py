"""Mamba-2 verify as a plain loop over tokens, and the same layer over a whole sequence in matrix form."""

import torch
from torch.nn.functional import softplus


def mamba2_verify_ref(
    xBC,
    dt,
    conv_weight,
    conv_bias,
    A,
    D,
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
    parents=None,
    compute_dtype=torch.float64,
):
    """Runs the open step of every slot; argument order and in-place writes as the op.

    Returns out [batch, max_ntokens, nheads, headdim] in compute_dtype, unrounded; zero beyond ntokens and for padding.
    Conv outputs are rounded to the activation dtype, as every path of the op rounds them (float64 inputs: not at all),
    and the state to the checkpoint's dtype after every token whose count is a multiple of fold_every, if that has 16
    bits.
    """
    _, nheads, headdim, dstate = checkpoint.shape
    width = conv_weight.shape[1]
    out = torch.zeros(*xBC.shape[:2], nheads, headdim, dtype=compute_dtype)

    layer = (conv_weight, conv_bias, A, dt_bias), (x_heads, B_heads, C_heads), checkpoint.dtype, fold_every
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        position, live, fold, ntokens = cursor[slot, :4].tolist()
        table = cursor[slot, 4:].tolist()
        new_rows = table[width - 1 + live : width - 1 + live + ntokens]
        rows[slot, new_rows] = xBC[i, :ntokens]
        dt_rows[slot, new_rows] = dt[i, :ntokens]
        committed = [torch.zeros_like(xBC[i, 0]) if row < 0 else rows[slot, row] for row in table[: width - 1 + live]]
        state = torch.zeros(nheads, headdim, dstate, dtype=compute_dtype)
        if position > live:
            state = checkpoint[slot].to(compute_dtype)
        for t in range(live):
            raw_dt = dt_rows[slot, table[width - 1 + t]]
            state, _, _ = advance(state, committed[t : t + width], raw_dt, position - live + t, *layer)
            if t + 1 == fold:
                checkpoint[slot] = state.to(checkpoint.dtype)
        paths = []  # of each new token: the state after it, and the raw inputs up to it
        for t in range(ntokens):
            parent = t - 1 if parents is None else int(parents[i, t])
            before, inputs = (state, committed) if parent < 0 else paths[parent]
            inputs = [*inputs, xBC[i, t]]
            depth = len(inputs) - len(committed) - 1
            after, x, C = advance(before, inputs[-width:], dt[i, t], position + depth, *layer)
            paths.append((after, inputs))
            y = (after * C[:, None, :]).sum(-1)
            out[i, t] = y if D is None else y + D.to(compute_dtype)[:, None] * x
    return out


def advance(state, window, raw_dt, position, parameters, heads, checkpoint_dtype, fold_every):
    """One token of the recurrence: the state after the token at `position`, its x and its C, all in state's dtype.

    state: [nheads, headdim, dstate]. window: the raw inputs of the token's conv, width times [conv_dim], oldest first.
    raw_dt: [nheads]. parameters: conv_weight, conv_bias, A, dt_bias. heads: of x, B and C.
    """
    conv_weight, conv_bias, A, dt_bias = parameters
    compute_dtype = state.dtype
    taps = zip(conv_weight.t(), window, strict=True)
    conv = sum(weight.to(compute_dtype) * raw.to(compute_dtype) for weight, raw in taps)
    if conv_bias is not None:
        conv = conv + conv_bias.to(compute_dtype)
    conv = (conv * torch.sigmoid(conv)).to(window[-1].dtype).to(compute_dtype)
    x, B, C = split_heads(conv, *state.shape, *heads)
    step = raw_dt.to(compute_dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(compute_dtype)
    step = softplus(step)
    decay = torch.exp(step * A.to(compute_dtype))
    state = decay[:, None, None] * state + (step[:, None] * x)[:, :, None] * B[:, None, :]
    if checkpoint_dtype.itemsize == 2 and (position + 1) % fold_every == 0:
        state = state.to(checkpoint_dtype).to(compute_dtype)
    return state, x, C


def split_heads(conv, nheads, headdim, dstate, x_heads, B_heads, C_heads):
    """[..., conv_dim] -> x [..., nheads, headdim], B, C [..., nheads, dstate]; head h reads h // (nheads / heads)."""
    x, B, C = conv.split([x_heads * headdim, B_heads * dstate, C_heads * dstate], dim=-1)
    parts = ((x, x_heads, headdim), (B, B_heads, dstate), (C, C_heads, dstate))
    return [part.unflatten(-1, (heads, size)).repeat_interleave(nheads // heads, dim=-2) for part, heads, size in parts]


def mamba2_sequence_ref(xBC, dt, conv_weight, conv_bias, A, D, dt_bias, x_heads, B_heads, C_heads, dstate):
    """The layer over one whole sequence, from position 0, as one masked matrix per head (Mamba-2, arXiv 2405.21060,
    the quadratic form): y_t = sum_{s <= t} exp(sum of dt A over s+1..t) (C_t . B_s) dt_s x_s + D x_t, in float64.

    xBC [length, conv_dim], dt [length, nheads] -> out [length, nheads, headdim]. No recurrence and no rows: this is
    the second formulation that the token loop above is checked against.
    """
    length, nheads, width = xBC.shape[0], A.shape[0], conv_weight.shape[1]
    headdim = (xBC.shape[1] - (B_heads + C_heads) * dstate) // x_heads
    padded = torch.cat([xBC.new_zeros(width - 1, xBC.shape[1]), xBC]).double()
    conv = padded.unfold(0, width, 1).mul(conv_weight.double()).sum(-1)
    if conv_bias is not None:
        conv = conv + conv_bias.double()
    conv = torch.nn.functional.silu(conv).to(xBC.dtype).double()
    x, B, C = split_heads(conv, nheads, headdim, dstate, x_heads, B_heads, C_heads)
    step = softplus(dt.double() + (0 if dt_bias is None else dt_bias.double()))
    log_decay = (step * A.double()).cumsum(0)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    weight = (log_decay[:, None] - log_decay[None]).masked_fill(~mask[..., None], -torch.inf).exp()
    scores = torch.einsum("thn,shn->tsh", C, B) * weight
    y = torch.einsum("tsh,sh,shp->thp", scores, step, x)
    return y if D is None else y + D.double()[:, None] * x
