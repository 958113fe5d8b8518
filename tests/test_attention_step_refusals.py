"""attention_step refuses by one sentence, and writes nothing then."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused

from llamba_kernels.ops import attention_step

GOOD = dict(
    q=torch.ones(2, 3, 4, 8),
    k=torch.ones(2, 3, 2, 8),
    v=torch.ones(2, 3, 2, 8),
    k_cache=torch.full((3, 2, 10, 8), 5.0),
    v_cache=torch.full((3, 2, 10, 8), 6.0),
    cursor=torch.tensor([[4, 0, 0, 3], [7, 0, 0, 3], [0, 0, 0, 1]], dtype=torch.int32),
    slots=torch.tensor([0, 1], dtype=torch.int32),
    parents=torch.tensor([[-1, 0, 0], [-1, -1, 1]], dtype=torch.int32),
    out=torch.full((2, 3, 4, 8), 7.0),
)


def changed(name, index, value):
    tensor = GOOD[name].clone()
    tensor[index] = value
    return {name: tensor}


SHARED = torch.ones(2000)
REFUSED = {
    "q dtype": (dict(q=GOOD["q"].double()), TypeError, "q must be float32, bfloat16 or float16; got float64"),
    "q dim": (dict(q=torch.ones(3, 4, 8)), ValueError, "q must have 4 dimensions; got shape (3, 4, 8)"),
    "q stride": (dict(q=torch.ones(2, 3, 8, 4).mT), TypeError, "q must have stride 1 in dimension -1; got 4"),
    "k shape": (
        dict(k=torch.ones(2, 3, 3, 8)),
        ValueError,
        "k must have shape (batch, ntokens, kv_heads, head_dim) = (2, 3, 2, 8); got (2, 3, 3, 8)",
    ),
    "k dtype": (dict(k=GOOD["k"].half()), TypeError, "k must have the dtype of q, float32; got float16"),
    "v shape": (
        dict(v=torch.ones(2, 2, 2, 8)),
        ValueError,
        "v must have the shape of k, (2, 3, 2, 8); got (2, 2, 2, 8)",
    ),
    "v stride": (dict(v=torch.ones(2, 3, 8, 2).mT), TypeError, "v must have stride 1 in dimension -1; got 2"),
    "k_cache dim": (
        dict(k_cache=torch.ones(2, 10, 8)),
        ValueError,
        "k_cache must have 4 dimensions; got shape (2, 10, 8)",
    ),
    "k_cache head_dim": (
        dict(k_cache=torch.ones(3, 2, 10, 9)),
        ValueError,
        "k_cache must have shape (nslots, kv_heads, max_tokens, head_dim) = (3, 2, 10, 8); got (3, 2, 10, 9)",
    ),
    "k_cache dtype": (
        dict(k_cache=GOOD["k_cache"].bfloat16()),
        TypeError,
        "k_cache must have the dtype of q, float32; got bfloat16",
    ),
    "v_cache shape": (
        dict(v_cache=torch.ones(3, 2, 11, 8)),
        ValueError,
        "v_cache must have the shape of k_cache, (3, 2, 10, 8); got (3, 2, 11, 8)",
    ),
    "head_dim": (
        {name: torch.ones(*GOOD[name].shape[:-1], 257) for name in ("q", "k", "v", "k_cache", "v_cache", "out")},
        ValueError,
        "head_dim must be 1 to 256; got 257",
    ),
    "kv_heads": (
        dict(q=torch.ones(2, 3, 5, 8), out=torch.ones(2, 3, 5, 8)),
        ValueError,
        "kv_heads must divide nheads = 5; got 2",
    ),
    "cursor dtype": (dict(cursor=GOOD["cursor"].long()), TypeError, "cursor must be int32; got int64"),
    "cursor slots": (
        dict(cursor=GOOD["cursor"][:2]),
        ValueError,
        "cursor must have shape (nslots, cursor_columns) = (3, 4); got (2, 4)",
    ),
    "cursor columns": (
        dict(cursor=GOOD["cursor"][:, :3]),
        ValueError,
        "columns of cursor must be 4 to 2147483647; got 3",
    ),
    "slots shape": (
        dict(slots=torch.zeros(3, dtype=torch.int32)),
        ValueError,
        "slots must have shape (batch) = (2,); got (3,)",
    ),
    "slots dtype": (dict(slots=GOOD["slots"].long()), TypeError, "slots must be int32; got int64"),
    "slot out of range": (changed("slots", 1, 3), ValueError, "slots must be below nslots = 3; got 3 at index 1"),
    "slot twice": (changed("slots", 1, 0), ValueError, "slots must name a slot at most once; got 0 twice"),
    "no open step": (
        changed("cursor", (1, 3), 0),
        ValueError,
        "slot 1 must have an open step; got none (cursor_begin opens it)",
    ),
    "a broken step": (
        changed("cursor", (1, 3), -1),
        ValueError,
        "slot 1 must have an open step; got none (cursor_begin opens it)",
    ),
    "a longer step": (
        changed("cursor", (1, 3), 4),
        ValueError,
        "q must hold the open step's 4 tokens of slot 1; got 3",
    ),
    "beyond max_tokens": (
        changed("cursor", (1, 0), 8),
        ValueError,
        "slot 1 must stay within max_tokens = 10; got 8 + 3 tokens",
    ),
    "a huge position": (
        changed("cursor", (1, 0), 2**31 - 1),
        ValueError,
        "slot 1 must stay within max_tokens = 10; got 2147483647 + 3 tokens",
    ),
    "a negative position": (
        changed("cursor", (1, 0), -1),
        ValueError,
        "slot 1 must stay within max_tokens = 10; got -1 + 3 tokens",
    ),
    "a text for a number": (dict(scale="3"), TypeError, "scale must be a number; got str '3'"),
    "parents shape": (
        dict(parents=torch.zeros(2, 2, dtype=torch.int32)),
        ValueError,
        "parents must have shape (batch, ntokens) = (2, 3); got (2, 2)",
    ),
    "parents dtype": (dict(parents=GOOD["parents"].long()), TypeError, "parents must be int32; got int64"),
    "its own parent": (
        changed("parents", (1, 2), 2),
        ValueError,
        "parents must be -1 or an earlier token of the step; got 2 for token 2 of slot 1",
    ),
    "parent -2": (
        changed("parents", (0, 1), -2),
        ValueError,
        "parents must be -1 or an earlier token of the step; got -2 for token 1 of slot 0",
    ),
    "scale": (dict(scale=float("inf")), ValueError, "scale must be finite; got inf"),
    "scale 1e39": (dict(scale=1e39), ValueError, "scale must be in the range of float32; got 1e+39"),
    "out shape": (
        dict(out=torch.ones(2, 3, 4, 7)),
        ValueError,
        "out must have the shape of q, (2, 3, 4, 8); got (2, 3, 4, 7)",
    ),
    "out dtype": (dict(out=GOOD["out"].half()), TypeError, "out must have the dtype of q, float32; got float16"),
    "out is q": (
        dict(q=SHARED[:192].view(2, 3, 4, 8), out=SHARED[:192].view(2, 3, 4, 8)),
        TypeError,
        "out must share no memory with q; got one that does",
    ),
    "one cache twice": (
        dict(k_cache=SHARED[:480].view(3, 2, 10, 8), v_cache=SHARED[:480].view(3, 2, 10, 8)),
        TypeError,
        "v_cache must share no memory with k_cache; got one that does",
    ),
    "slots share a cache": (
        dict(k_cache=torch.ones(1, 2, 10, 8).expand(3, 2, 10, 8)),
        TypeError,
        "k_cache must have strides with which no two elements share memory; got shape (3, 2, 10, 8) with strides "
        "(0, 80, 8, 1)",
    ),
    "grad": (
        dict(q=torch.zeros(2, 3, 4, 8, requires_grad=True)),
        ValueError,
        "q must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    assert_refused(kind, f"attention_step: {sentence}", attention_step, **(GOOD | change))
    for name, value in (("k_cache", 5.0), ("v_cache", 6.0), ("out", 7.0)):
        assert_bitwise(GOOD[name], torch.full_like(GOOD[name], value))
