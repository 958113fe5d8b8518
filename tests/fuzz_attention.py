"""For tests/fuzz.py: attention_step and kv_compact, on open steps of chains and of trees."""

import torch
from fuzz_arguments import change_list
from fuzz_case import FLOATING, NAN, ROUNDING, Op, require, stored
from fuzz_cursor import accepted_path, draw_paths, listed_slots, per_slot
from fuzz_mamba2 import draw_trees

from python_ref.attention_step import attention_step_ref
from python_ref.kv_compact import kv_compact_ref

POSITIONS = (0, 0, 1, 2, 7, 15, 16, 17, 31, 33, 64, 100)
FAR_POSITIONS = (254, 255, 256, 257, 300, 513)  # around the kernel's chunks of keys


def draw_steps(draw):
    """(cursor, slots, position and ntokens per slot of the batch, max_tokens); other slots' headers are anything."""
    nslots, batch = draw.randint(1, 4), draw.randint(0, 4)
    slots = draw.sample([*range(nslots), *range(-4, 0)], batch)
    wild = draw.choice((-1, 0, 7, 2**31 - 1))
    cursor = torch.full((nslots, draw.choice((4, 5, 11))), wild, dtype=torch.int32)
    positions, counts = [0] * batch, [0] * batch
    for i, slot in enumerate(slots):
        if slot >= 0:
            positions[i], counts[i] = draw.choice(POSITIONS), draw.randint(1, 6)
            cursor[slot, 0], cursor[slot, 3] = positions[i], counts[i]
    if max(counts, default=0) > 0 and draw.random() < 0.1:
        i = counts.index(max(counts))
        positions[i] = cursor[slots[i], 0] = draw.choice(FAR_POSITIONS)
    most = max([p + n for p, n in zip(positions, counts, strict=True)], default=0)
    return cursor, torch.tensor(slots, dtype=torch.int32), positions, counts, most + draw.choice((0, 0, 3))


def open_steps(cursor, slots, max_tokens):
    """[(index, slot, position, ntokens)]; raises unless every slot has a step that the cache has room for."""
    steps = [(i, slot, *cursor[slot, [0, 3]].tolist()) for i, slot in listed_slots(cursor, slots)]
    require(all(n > 0 and 0 <= p and p + n <= max_tokens for _, _, p, n in steps), "an open step within max_tokens")
    return steps


# ---- attention_step ----


def draw_attention_step(draw):
    cursor, slots, positions, counts, max_tokens = draw_steps(draw)
    dtype, head_dim = draw.choice(FLOATING), draw.choice((draw.size(1, 129), draw.size(1, 129), 256))
    kv_heads, group = draw.randint(1, 2), draw.choice((1, 1, 2, 3, 5))
    batch, max_ntokens = len(slots), max([1, *counts]) + draw.choice((0, 0, 2))

    def tokens(heads):
        result = torch.randn(batch, max_ntokens, heads, head_dim).to(dtype)
        for i, count in enumerate(counts):
            result[i, count:] = NAN
        return result

    caches = torch.full((2, len(cursor), kv_heads, max_tokens, head_dim), NAN, dtype=dtype)
    for slot, position in zip(slots.tolist(), positions, strict=True):
        if slot >= 0:
            caches[:, slot, :, :position] = torch.randn(2, kv_heads, position, head_dim).to(dtype)
    return dict(
        q=2 * tokens(kv_heads * group),
        k=tokens(kv_heads),
        v=tokens(kv_heads),
        k_cache=caches[0],
        v_cache=caches[1],
        cursor=cursor,
        slots=slots,
        scale=draw.choice((None, None, 0.05, 1.0, 0.0, -0.3)),
        sliding_window=draw.choice((0, 0, 1, 2, 5, 16, 33, 300)),
        parents=draw.maybe(draw_trees(draw, counts, max_ntokens)),
        out=draw.maybe(torch.full((batch, max_ntokens, kv_heads * group, head_dim), NAN, dtype=dtype)),
    )


def expect_attention_step(q, k, v, k_cache, v_cache, cursor, slots, scale, sliding_window, parents, out):
    """With d the error of a score, head_dim + 2 roundings of |scale| |q| . |k|, a weight is off by a factor e^(2 d) and
    the sums by a rounding or two per key, both of the weighted mean of |v|; no weight is below e^-87 (fp32's exp ends).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    require(q.dtype in FLOATING and {t.dtype for t in (k, v, k_cache, v_cache)} == {q.dtype}, "dtypes")
    require(k.shape == v.shape and k_cache.shape == v_cache.shape, "v is like k")
    require(q.shape[2] % k.shape[2] == 0 and cursor.shape[0] == k_cache.shape[0], "heads and slots fit")
    require(slots.shape == q.shape[:1] and abs(scale) < float("inf"), "slots is (batch); scale is finite")
    require(sliding_window >= 0, "sliding_window is not negative")
    require(parents is None or parents.dtype == torch.int32 and parents.shape == q.shape[:2], "parents fits q")
    arguments = cursor, slots, scale, sliding_window, parents
    steps = open_steps(cursor, slots, k_cache.shape[2])
    for i, _, _, ntokens in steps:
        require(ntokens <= q.shape[1], "q holds the step")
        if parents is not None:
            require(all(-1 <= p < t for t, p in enumerate(parents[i, :ntokens].tolist())), "parents come before")
    value, keys, values = attention_step_ref(q, k, v, k_cache, v_cache, *arguments)
    size, _, _ = attention_step_ref(q, k, v.abs(), k_cache, v_cache.abs(), *arguments)
    tolerance = torch.zeros_like(value)
    for i, slot, position, ntokens in steps:
        seen = slice(position + ntokens)
        each_key = keys[slot, :, seen].double().abs().repeat_interleave(q.shape[2] // k.shape[2], 0)
        scores = abs(scale) * torch.einsum("thd,hkd->thk", q[i, :ntokens].double().abs(), each_key).amax(-1)
        factor = torch.expm1(2 * (q.shape[3] + 2) * ROUNDING * scores) + (2 * seen.stop + 32) * ROUNDING
        faint = seen.stop * 2.0**-126 * values[slot, :, seen].double().abs().amax()
        tolerance[i, :ntokens] = factor[..., None] * size[i, :ntokens] + faint + stored(value[i, :ntokens], q.dtype)
    return {"out": (value, tolerance), "k_cache": (keys, 0), "v_cache": (values, 0)}


# ---- kv_compact ----


def draw_kv_compact(draw):
    cursor, slots, _, counts, max_tokens = draw_steps(draw)
    accepted = per_slot(draw, slots, lambda slot: draw.randint(0, cursor[slot, 3].item()))
    shape = len(cursor), draw.size(0, 3), max_tokens, draw.size(0, 33)
    dtype, layers = draw.choice(FLOATING), draw.randint(1, 3)
    k_caches, v_caches = ([torch.randn(shape).to(dtype) for _ in range(layers)] for _ in range(2))
    path = draw_paths(draw, counts, accepted.tolist())
    return dict(k_caches=k_caches, v_caches=v_caches, cursor=cursor, slots=slots, accepted=accepted, path=path)


def expect_kv_compact(k_caches, v_caches, cursor, slots, accepted, path):
    """Exact."""
    require(isinstance(k_caches, list) and isinstance(v_caches, list), "lists")
    caches = k_caches + v_caches
    require(len(k_caches) == len(v_caches) > 0, "as many caches of keys as of values")
    require(len({(cache.shape, cache.dtype) for cache in caches}) == 1 and caches[0].dtype in FLOATING, "caches alike")
    require(caches[0].dim() == 4 and caches[0].shape[0] == cursor.shape[0], "caches have the cursor's slots")
    require(accepted.dtype == torch.int32 and accepted.shape == slots.shape, "accepted is (batch) int32")
    for i, _, _, ntokens in open_steps(cursor, slots, caches[0].shape[2]):
        require(0 <= accepted[i] <= ntokens, "accepted is 0 to the step's ntokens")
        accepted_path(path, i, slots, accepted, ntokens)
    keys, values = kv_compact_ref(k_caches, v_caches, cursor, slots, accepted, path)
    lists = {"k_caches": keys, "v_caches": values}
    return {f"{name}[{i}]": (cache, 0) for name, after in lists.items() for i, cache in enumerate(after)}


ATTENTION_OPS = (
    Op("attention_step", draw_attention_step, expect_attention_step, ("out", "k_cache", "v_cache"), ("out",)),
    Op("kv_compact", draw_kv_compact, expect_kv_compact, ("k_caches", "v_caches"), mutations=(change_list,)),
)
