"""gated_rms_norm against the same formula in torch; inputs are warm, as they come from the operation before."""

import pytest
import torch

from llamba_kernels.ops import gated_rms_norm
from llamba_kernels.testing import gated_rms_norm_formula, make_gated_rms_norm_inputs

CASES = {
    "smollm2-135m norm, 1 row": (1, 576, 576, False),
    "smollm2-135m norm, 4 rows": (4, 576, 576, False),
    "smollm2-135m mixer, 1 row": (1, 576, 576, True),
    "smollm2-135m mixer, 4 rows": (4, 576, 576, True),
    "8b norm, 4 rows": (4, 4096, 4096, False),
    "8b mixer, 1 row": (1, 4096, 4096, True),
    "8b mixer, 4 rows": (4, 4096, 4096, True),
    "8b mixer, 4 rows, 8 groups": (4, 4096, 512, True),
    "8b mixer, 64 rows": (64, 4096, 4096, True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def bench_gated_rms_norm(row, case, dtype):
    rows, width, group_size, gate = CASES[case]
    inputs = make_gated_rms_norm_inputs((rows,), width, group_size, gate, dtype)
    out = torch.empty_like(inputs[0])

    def check():
        tolerance = 2e-6 if dtype == torch.float32 else 1e-2
        expected = gated_rms_norm_formula(*inputs)
        torch.testing.assert_close(gated_rms_norm(*inputs), expected, rtol=tolerance, atol=tolerance)

    row(
        f"{case}, {str(dtype)[6:]}",
        lambda inputs: gated_rms_norm(*inputs, out=out),
        lambda inputs: gated_rms_norm_formula(*inputs),
        [inputs],
        check,
        sum(x.nbytes for x in inputs[:3] if x is not None) + out.nbytes,
    )
