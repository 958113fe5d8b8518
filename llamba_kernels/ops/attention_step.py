"""The step of an attention layer: a window or a tree of tokens against a KV cache."""

import torch

from .._load import call, operator


@operator
def attention_step(q, k, v, k_cache, v_cache, cursor, slots, *, scale=None, sliding_window=0, parents=None, out=None):
    """Store every slot's open step in the cache and let its tokens attend to the slot's sequence.

        out = softmax(scale q . K) V, over the slot's committed tokens and the token's path within the step

    The path is, in a chain, the step's tokens up to the token itself; in a tree, its ancestors and itself. With a
    sliding window a token sees, of all these, itself and the sliding_window - 1 before it. Sums run in order of a key's
    place in its sequence, a step's token at position + depth, so a token's bits depend on its own path alone: not on
    the step's window, the tree around it, the batch or the threads. A chain of K tokens equals K one-token calls bit
    for bit; so does a path of a tree, once `kv_compact` has put it where a chain would have. Computed in fp32 and
    rounded once. No gradient.

    Args:
        q: (batch, ntokens, nheads, head_dim), float32, bfloat16 or float16, after RoPE; head_dim up to 256. Last stride
            1, as of all below.
        k, v: (batch, ntokens, kv_heads, head_dim), dtype of q, k after RoPE; kv_heads divides nheads, and head h reads
            kv head h // (nheads // kv_heads).
        k_cache, v_cache: (nslots, kv_heads, max_tokens, head_dim), dtype of q.
        cursor: (nslots, at least 4) int32: position, live, fold, ntokens. Every slot must have an open step
            (`cursor_begin`) of at most q's ntokens, with position + ntokens at most max_tokens.
        slots: (batch) int32, unique; < 0 is padding.
        scale: float, or None: head_dim ** -0.5.
        sliding_window: int; 0: none.
        parents: (batch, ntokens) int32, each token's parent, an earlier token of the step or -1: the committed tokens;
            what lies beyond a slot's ntokens is not read. None: a chain.
        out: as q, or None: a new tensor. What is written shares no memory with the rest.
    Writes: k_cache and v_cache (token i of the step at position + i), out (zero beyond a slot's ntokens and for
        padding).
    Returns: out.
    Raises: ValueError (shapes, numbers, slots, parents), TypeError (dtypes, devices, strides, overlap). Nothing is
        written then.
    Devices: CPU.
    Source: csrc/attention_step. Reference: python_ref/attention_step.py.
    """
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if scale is None:
        scale = max(q.shape[-1], 1) ** -0.5 if q.dim() else 1.0
    new, caches = (q, k, v), (k_cache, v_cache)
    options = scale, sliding_window, parents
    call(torch.ops.llamba.attention_step.default, *new, *caches, cursor, slots, *options, out)
    return out
