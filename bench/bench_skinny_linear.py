"""skinny_linear against torch.nn.functional.linear; the weight comes from memory, as in a decoding step."""

import pytest
import torch
from harness import cold_copies

from llamba_kernels.ops import skinny_linear
from llamba_kernels.testing import make_skinny_linear_inputs

SIZES = {"8b": (2560, 10240), "smollm2-135m up": (1536, 576), "smollm2-135m head": (49152, 576)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64]
CASES = [("8b", rows) for rows in ROWS] + [(size, rows) for size in list(SIZES)[1:] for rows in (1, 4, 8)]


@pytest.mark.parametrize("dtype", DTYPES, ids=[str(dtype)[6:] for dtype in DTYPES])
@pytest.mark.parametrize("size, rows", CASES)
def bench_skinny_linear(row, size, rows, dtype):
    out_features, in_features = SIZES[size]
    x, weight, _ = make_skinny_linear_inputs((rows,), in_features, out_features, bias=False, dtype=dtype)
    out = torch.empty(rows, out_features, dtype=dtype)

    def check():
        expected = x.double() @ weight.double().t()
        error = (skinny_linear(x, weight).double() - expected).abs().max()
        torch_error = (torch.nn.functional.linear(x, weight).double() - expected).abs().max()
        assert error <= 2 * torch_error + torch.finfo(dtype).eps * expected.abs().max()

    weights = cold_copies(weight.clone, weight.nbytes)
    row(
        f"{size} {out_features} x {in_features}, {rows} rows, {str(dtype)[6:]}",
        lambda weight: skinny_linear(x, weight, out=out),
        lambda weight: torch.nn.functional.linear(x, weight),
        weights,
        check,
        weight.nbytes + x.nbytes + out.nbytes,
    )
