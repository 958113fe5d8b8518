"""A causal depthwise conv over a few tokens, from a state of raw inputs: token by token."""

import torch


def causal_conv1d_update_ref(
    x,
    conv_state,
    weight,
    bias,
    silu,
    cache_seqlens=None,
    slots=None,
    accepted=None,
    query_start=None,
    pad_slot=-1,
    target_block=None,
    source_block=None,
    parents=None,
    windows=None,
    window_entries=None,
    compute_dtype=torch.float64,
):
    """Argument order and what is written to conv_state and windows: as the op. Returns out, unrounded."""
    width, length = weight.shape[1], conv_state.shape[2]
    out = torch.zeros(x.shape, dtype=compute_dtype)
    count = len(x) if query_start is None else len(query_start) - 1
    for i in range(count):
        if query_start is not None:
            span = slice(int(query_start[i]), int(query_start[i + 1]))
            tokens, place = x[span], out[span]
        else:
            tokens = x[i].unsqueeze(0) if x.dim() == 2 else x[i].t()
            place = out[i].unsqueeze(0) if x.dim() == 2 else out[i].t()
        blocks = [i] if slots is None else slots[i].reshape(-1).tolist()
        source = blocks[0 if source_block is None else int(source_block[i])]
        if source < 0 or source == pad_slot or len(tokens) == 0:
            continue
        target = blocks[0 if target_block is None else int(target_block[i])]
        new = [token.to(conv_state.dtype) for token in tokens]
        old = [conv_state[source, :, column].clone() for column in range(length)]
        if cache_seqlens is not None:
            start = int(cache_seqlens[i])
            before = [old[(start - width + 1 + j) % length] for j in range(width - 1)]
            written = {(start + t) % length: token for t, token in enumerate(new)}
        elif accepted is not None:
            before = old[int(accepted[i]) - 1 :][: width - 1]
            written = dict(enumerate(before[1:] + new))
        else:
            before = old[length - (width - 1) :]
            written = dict(enumerate((old + new)[-length:]))
        for column, token in written.items():
            conv_state[target, :, column] = token
        paths = []  # of each token: the inputs up to it
        for t, token in enumerate(new):
            parent = t - 1 if parents is None or t == 0 else int(parents[i, t])
            path = [*(before if parent < 0 else paths[parent]), token]
            paths.append(path)
            products = (path[j - width].to(compute_dtype) * weight[:, j].to(compute_dtype) for j in range(width))
            y = sum(products) + (0 if bias is None else bias.to(compute_dtype))
            place[t] = y * torch.sigmoid(y) if silu else y
            if windows is not None:
                entry = source if window_entries is None else int(window_entries[i])
                windows[entry, t] = torch.stack(path[1 - width :], -1)
    return out
