"""silu_mul against the same formula in torch; gate and up are columns of one projection, warm from it."""

import peers
import pytest
import torch

from llamba_kernels.ops import silu_mul
from llamba_kernels.testing import make_silu_mul_inputs, silu_mul_formula

SIZES = {"smollm2-135m": 1536, "8b": 14336}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 4, 64])
@pytest.mark.parametrize("size", SIZES)
def bench_silu_mul(row, size, rows, dtype):
    fused = torch.cat(make_silu_mul_inputs((rows,), SIZES[size], dtype), -1)
    gate, up = fused.chunk(2, -1)
    out = torch.empty_like(gate)

    def check():
        tolerance = 2e-6 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(silu_mul(gate, up), silu_mul_formula(gate, up), rtol=tolerance, atol=tolerance)

    row(
        f"{size} {SIZES[size]}, {rows} rows, {str(dtype)[6:]}",
        lambda _: silu_mul(gate, up, out=out),
        lambda _: silu_mul_formula(gate, up),
        [None],
        check,
        fused.nbytes + out.nbytes,
        peer=peers.vllm(lambda ops, _: ops.silu_and_mul(out, fused)),
    )
