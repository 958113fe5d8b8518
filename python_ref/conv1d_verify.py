"""conv1d_verify as a plain loop over tokens."""

import torch


def conv1d_verify_ref(
    x,
    conv_weight,
    conv_bias,
    rows,
    cursor,
    slots,
    x_heads,
    headdim,
    parents=None,
    compute_dtype=torch.float64,
):
    """Runs the open step of every slot; argument order and in-place writes as the op.

    Returns out [batch, max_ntokens, dim] in compute_dtype, unrounded; zero beyond ntokens and for padding.
    """
    dim, width = conv_weight.shape
    repeats = dim // (x_heads * headdim)
    out = torch.zeros(*x.shape[:2], dim, dtype=compute_dtype)
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        _, live, _, ntokens = cursor[slot, :4].tolist()
        table = cursor[slot, 4:].tolist()
        rows[slot, table[width - 1 + live : width - 1 + live + ntokens]] = x[i, :ntokens]
        committed = [torch.zeros_like(x[i, 0]) if row < 0 else rows[slot, row] for row in table[: width - 1 + live]]
        paths = []  # of each new token: the raw inputs up to it
        for t in range(ntokens):
            parent = t - 1 if parents is None else int(parents[i, t])
            paths.append([*(committed if parent < 0 else paths[parent]), x[i, t]])
            taps = zip(conv_weight.t(), paths[t][-width:], strict=True)
            conv = sum(
                weight.to(compute_dtype) * repeat(raw, headdim, repeats).to(compute_dtype) for weight, raw in taps
            )
            if conv_bias is not None:
                conv = conv + conv_bias.to(compute_dtype)
            out[i, t] = conv * torch.sigmoid(conv)
    return out


def repeat(raw, headdim, repeats):
    """[x_heads * headdim] -> [dim]: head h is head h // repeats."""
    return raw.unflatten(-1, (-1, headdim)).repeat_interleave(repeats, dim=-2).flatten(-2)


def conv1d_sequence_ref(x, conv_weight, conv_bias, x_heads, headdim):
    """The same over one whole sequence [length, x_heads * headdim] from position 0, by torch's own convolution."""
    dim, width = conv_weight.shape
    wide = repeat(x, headdim, dim // (x_heads * headdim)).double().t()
    bias = None if conv_bias is None else conv_bias.double()
    conv = torch.nn.functional.conv1d(wide, conv_weight.double()[:, None], bias, padding=width - 1, groups=dim)
    return torch.nn.functional.silu(conv[:, : x.shape[0]]).t()
