"""Rotary position embedding, pair by pair."""


def rope_ref(x, cos, sin, positions, interleaved=False):
    """The rotated heads in fp64, unrounded; argument order as the op."""
    half = cos.shape[1]
    out = x.double().clone()
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            position = int(positions[b, t])
            if position < 0:
                out[b, t] = 0
                continue
            for i in range(half):
                first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
                x0, x1 = x[b, t, :, first].double(), x[b, t, :, second].double()
                c, s = cos[position, i].double(), sin[position, i].double()
                out[b, t, :, first] = x0 * c - x1 * s
                out[b, t, :, second] = x0 * s + x1 * c
    return out
