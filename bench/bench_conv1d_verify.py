"""conv1d_verify of one layer, rows and weights cold, against torch's convolution over the tail and the new tokens."""

import copy

import pytest
import torch
from harness import cold_copies
from torch.nn.functional import conv1d, silu

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer
from python_ref.conv1d_verify import conv1d_verify_ref, repeat

SHAPES = {
    "mamba-2.8b": dict(d_inner=5120),
    "8b, from attention": dict(d_inner=4096, headdim=16, x_heads=64),
}
SLOT = torch.zeros(1, dtype=torch.int32)


def formula(layer, x):
    """The newest width - 1 rows and the new tokens through torch's convolution; any rows serve."""
    weight, bias = layer.conv.values()
    inputs = torch.cat([layer.rows[0, : weight.shape[1] - 1], x[0]])
    wide = repeat(inputs, layer.headdim, layer.d_inner // inputs.shape[1])
    return silu(conv1d(wide.t(), weight[:, None], bias, groups=layer.d_inner))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("ntokens", [1, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def bench_conv1d_verify(row, shape, ntokens, dtype):
    layer = make_mamba1_layer(1, **SHAPES[shape], dtype=dtype, session=Session(max_window=8))
    x, count = layer.raw(1, ntokens), torch.tensor([ntokens], dtype=torch.int32)
    for _ in range(3):
        layer.cursor.begin(SLOT, count)
        layer.convolve(x, SLOT)
        layer.cursor.commit(SLOT, count)
    layer.cursor.begin(SLOT, count)
    layer.rows.nan_to_num_()
    out = torch.empty(1, ntokens, layer.d_inner, dtype=dtype)

    def check():
        arguments, keywords = layer.conv_arguments(x, SLOT)
        reference = conv1d_verify_ref(*arguments, **keywords)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(layer.convolve(x, SLOT).double(), reference, rtol=tolerance, atol=tolerance)

    parameters = sum(each.nbytes for each in layer.conv.values())
    row_bytes = layer.rows[0, 0].nbytes
    row(
        f"{shape}, {str(dtype)[6:]}, {ntokens} tokens",
        lambda each: each.convolve(x, SLOT, out=out),
        lambda each: formula(each, x),
        cold_copies(lambda: copy.deepcopy(layer), layer.rows.nbytes + parameters),
        check,
        parameters + (3 + 2 * ntokens) * row_bytes + out.nbytes,  # the tail; new tokens: read, stored
    )
