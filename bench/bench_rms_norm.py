"""rms_norm against the same formula in torch; inputs are warm, as they come from the operation before."""

import peers
import pytest
import torch

from llamba_kernels.ops import rms_norm
from llamba_kernels.testing import make_rms_norm_inputs, rms_norm_formula

CASES = {
    "smollm2-135m, 1 row": ((1,), 576, False),
    "smollm2-135m, 1 row, residual": ((1,), 576, True),
    "smollm2-135m, 4 rows, residual": ((4,), 576, True),
    "8b, 1 row, residual": ((1,), 4096, True),
    "8b, 4 rows": ((4,), 4096, False),
    "8b, 4 rows, residual": ((4,), 4096, True),
    "8b, 64 rows, residual": ((64,), 4096, True),
    "per head, 4 tokens x 32 x 128": ((4, 32), 128, False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def bench_rms_norm(row, case, dtype):
    shape, width, has_residual = CASES[case]
    x, weight, eps, residual = make_rms_norm_inputs(shape, width, has_residual, dtype)
    out = torch.empty_like(x)

    def check():
        tolerance = 2e-6 if dtype == torch.float32 else 2e-2
        expected = rms_norm_formula(x, weight, eps, residual)
        actual = rms_norm(x, weight, eps, residual.clone() if has_residual else None)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    def formula(_):
        if has_residual:
            residual.add_(x)
            return rms_norm_formula(residual, weight, eps)
        return rms_norm_formula(x, weight, eps)

    def vllm(ops, _):  # its fused form writes the norm over x, so that x grows stale: the time is the same
        ops.fused_add_rms_norm(x, residual, weight, eps) if has_residual else ops.rms_norm(out, x, weight, eps)

    row(
        f"{case}, {str(dtype)[6:]}",
        lambda _: rms_norm(x, weight, eps, residual, out=out),
        formula,
        [None],
        check,
        x.nbytes + weight.nbytes + out.nbytes + (2 * residual.nbytes if has_residual else 0),
        peer=peers.vllm(vllm),
    )
