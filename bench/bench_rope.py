"""rope in place on the q and k heads of a fused projection, against the same formula in torch; inputs are warm."""

import peers
import pytest
import torch

from llamba_kernels.ops import rope
from llamba_kernels.testing import make_rope_inputs, rope_formula

SIZES = {"smollm2-135m": (9, 3, 64), "8b": (32, 8, 128)}  # q heads, kv heads, head_dim


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("ntokens", [1, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def bench_rope(row, size, ntokens, dtype):
    q_heads, kv_heads, head_dim = SIZES[size]
    nheads = q_heads + kv_heads
    x, cos, sin, positions = make_rope_inputs(1, ntokens, nheads, head_dim, head_dim, 4096, dtype)
    out = torch.empty_like(x)
    q, k = (part.flatten(-2)[0] for part in x.clone().split([q_heads, kv_heads], 2))
    table, positions_long = torch.cat([cos, sin], -1).to(dtype), positions.flatten().long()

    def check():
        tolerance = 2e-6 if dtype == torch.float32 else 2e-2
        expected = rope_formula(x, cos, sin, positions)
        torch.testing.assert_close(rope(x, cos, sin, positions), expected, rtol=tolerance, atol=tolerance)

    row(
        f"{size}, {ntokens} tokens x {nheads} heads, {str(dtype)[6:]}",
        lambda _: rope(x, cos, sin, positions, out=out),
        lambda _: rope_formula(x, cos, sin, positions),
        [None],
        check,
        x.nbytes + out.nbytes + ntokens * head_dim * 4,
        peer=peers.vllm(lambda ops, _: ops.rotary_embedding(positions_long, q, k, head_dim, table, True)),
    )
