"""kv_compact of all layers at once, against an indexed copy per layer in torch; the step's rows are warm."""

import pytest
import torch

from llamba_kernels.ops import kv_compact
from llamba_kernels.testing import make_kv_compact_inputs
from python_ref.kv_compact import kv_compact_ref

SHAPES = {"smollm2-135m": (22, 3, 64), "8b": (16, 8, 128)}  # attention layers, kv heads, head_dim


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def bench_kv_compact(row, shape, dtype):
    nlayers, kv_heads, head_dim = SHAPES[shape]
    inputs = make_kv_compact_inputs([500], [16], nlayers, kv_heads, head_dim, dtype)
    path = torch.tensor([1, 4, 7, 12])
    inputs["accepted"][0], inputs["path"][0, :4] = 4, path.int()
    slot = int(inputs["slots"][0])
    moved = 2 * nlayers * kv_heads * 4 * head_dim * dtype.itemsize

    def formula(_):
        for cache in (*inputs["k_caches"], *inputs["v_caches"]):
            cache[slot, :, 500:504] = cache[slot, :, 500 + path]

    def check():
        expected = kv_compact_ref(**inputs)
        kv_compact(**inputs)
        for name, caches in zip(("k_caches", "v_caches"), expected, strict=True):
            assert all(torch.equal(*pair) for pair in zip(inputs[name], caches, strict=True))

    row(
        f"{shape}, {nlayers} layers, 4 of 16 tokens, {str(dtype)[6:]}",
        lambda _: kv_compact(**inputs),
        formula,
        [None],
        check,
        2 * moved,
    )
