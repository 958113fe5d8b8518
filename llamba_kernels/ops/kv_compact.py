"""What a tree step leaves in the KV caches, put where a chain of the accepted tokens would have left it."""

import torch

from .._load import call, operator


@operator
def kv_compact(k_caches, v_caches, cursor, slots, accepted, path):
    """Move the keys and values of the accepted path from position + path[i] to position + i, before `cursor_commit`.

    Args:
        k_caches, v_caches: lists of as many tensors each, (nslots, kv_heads, max_tokens, head_dim), float32, bfloat16
            or float16: the caches of all attention layers. Last stride 1.
        cursor: (nslots, at least 4) int32: position, live, fold, ntokens. Every slot must have an open step.
        slots: (batch) int32, unique; < 0 is padding.
        accepted: (batch) int32, 0 to the step's ntokens: how many tokens of the path stay.
        path: (batch, max_window) int32: tokens of the step from the root on, each greater than the one before; what
            lies beyond accepted is not read. Last stride 1.
    Writes: k_caches and v_caches.
    Raises: ValueError (shapes, slots, paths), TypeError (dtypes, devices, strides, overlap). Nothing is written then.
    Devices: CPU.
    Source: csrc/kv_compact. Reference: python_ref/kv_compact.py.
    """
    call(torch.ops.llamba.kv_compact.default, k_caches, v_caches, cursor, slots, accepted, path)
