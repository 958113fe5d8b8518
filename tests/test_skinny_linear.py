"""skinny_linear: against the fp64 reference; tiles, rows, strides and threads do not change bits; what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, assert_refused, sliced, threads

from llamba_kernels.ops import skinny_linear
from llamba_kernels.testing import make_skinny_linear_inputs
from python_ref.skinny_linear import skinny_linear_ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BASE = dict(shape=(2, 3), in_features=64, out_features=32, bias=True, dtype=torch.float32)
CASES = {
    "base": {},
    "bf16": dict(dtype=torch.bfloat16),
    "smollm2-135m qkv": dict(in_features=576, out_features=960),
    "smollm2-135m bf16": dict(in_features=1536, out_features=576, dtype=torch.bfloat16),
    "no bias": dict(bias=False),
    "1 feature": dict(out_features=1),
    "5 features": dict(out_features=5),
    "in 1": dict(in_features=1),
    "in 15": dict(in_features=15),
    "in 17": dict(in_features=17),
    "bf16 in 1": dict(in_features=1, dtype=torch.bfloat16),
    "blocks of in_features": dict(shape=(9,), in_features=4160, out_features=53),
    "blocks of in_features bf16": dict(shape=(9,), in_features=4160, out_features=53, dtype=torch.bfloat16),
    "blocks of in_features fp16": dict(shape=(9,), in_features=4160, out_features=53, dtype=torch.float16),
    "fp16": dict(dtype=torch.float16),
    "fp16 one row": dict(shape=(), dtype=torch.float16),
    "fp16 smollm2-135m": dict(in_features=1536, out_features=576, dtype=torch.float16),
    "fp16 in 33": dict(in_features=33, dtype=torch.float16),
    "bf16 in 31": dict(in_features=31, dtype=torch.bfloat16),
    "bf16 in 33": dict(in_features=33, dtype=torch.bfloat16),
    "in 0": dict(in_features=0),
    "one row": dict(shape=()),
    "7 rows": dict(shape=(7,)),
    "64 rows": dict(shape=(64,)),
    "65 rows": dict(shape=(65,), out_features=9, dtype=torch.bfloat16),
    "no rows": dict(shape=(0, 4)),
    "no features": dict(out_features=0),
}


def make_inputs(**change):
    return make_skinny_linear_inputs(**(BASE | change))


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change):
    inputs = make_inputs(**change)
    out = skinny_linear(*inputs)
    assert out.dtype == inputs[0].dtype
    expected = skinny_linear_ref(*inputs)
    assert out.shape == expected.shape
    if out.numel():
        assert_close_to_ref(out, expected, torch.nn.functional.linear(*inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [576, 85, 2100])
def test_a_row_has_the_same_bits_in_every_window(dtype, in_features):
    """Alone, or with 1 to 63 others, on one thread or two, as rows or as a batch."""
    x, weight, bias = make_inputs(shape=(64,), in_features=in_features, out_features=203, dtype=dtype)
    alone = torch.stack([skinny_linear(row, weight, bias) for row in x])
    for count in range(1, 65):
        with threads(1 + count % 2):
            assert_bitwise(skinny_linear(x[:count], weight, bias), alone[:count])
    assert_bitwise(skinny_linear(x.view(16, 4, -1), weight, bias), alone.view(16, 4, -1))
    window = x.view(8, 8, -1)[:, :3]  # its sequences do not lie at one distance from row to row
    assert_bitwise(skinny_linear(window, weight, bias), alone.view(8, 8, -1)[:, :3])
    assert_bitwise(skinny_linear(x[:, None], weight, bias), alone[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_output_has_the_same_bits_in_every_tile(dtype):
    """A feature alone, or at any place among others."""
    for rows in (3, 9):
        x, weight, _ = make_inputs(shape=(rows,), in_features=100, out_features=61, dtype=dtype)
        out = skinny_linear(x, weight)
        for first in range(61):
            assert_bitwise(skinny_linear(x, weight[first:]), out[:, first:].contiguous())


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_change_each_other(dtype):
    x, weight, bias = make_inputs(shape=(8,), dtype=dtype)
    out = skinny_linear(x, weight, bias)
    x[3] = float("nan")
    spoiled = skinny_linear(x, weight, bias)
    assert spoiled[3].isnan().all()
    assert_bitwise(spoiled[[0, 1, 2, 4, 5, 6, 7]], out[[0, 1, 2, 4, 5, 6, 7]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [32, 45])
def test_strides_and_bystanders(dtype, in_features):
    x, weight, bias = make_inputs(in_features=in_features, out_features=7, dtype=dtype)
    expected = skinny_linear(x, weight, bias)
    out = Surrounded(torch.zeros_like(expected), fill=7.0)
    result = skinny_linear(sliced(x), sliced(weight), sliced(bias), out=out.inner)
    assert result is out.inner
    assert_bitwise(out.inner, expected)
    out.assert_surroundings_untouched()


SHARED = torch.ones(64)
REFUSED = {
    "x dtype": (dict(x=torch.zeros(2, 8).double()), TypeError, "x must be float32, bfloat16 or float16; got float64"),
    "x dim": (dict(x=torch.zeros(1, 1, 2, 8)), ValueError, "x must have 1 to 3 dimensions; got shape (1, 1, 2, 8)"),
    "x stride": (dict(x=torch.zeros(8, 2).t()), TypeError, "x must have stride 1 in dimension -1; got 2"),
    "weight dim": (dict(weight=torch.zeros(8)), ValueError, "weight must have 2 dimensions; got shape (8,)"),
    "weight shape": (
        dict(weight=torch.zeros(5, 7)),
        ValueError,
        "weight must have shape (out_features, in_features) = (5, 8); got (5, 7)",
    ),
    "weight dtype": (
        dict(weight=torch.zeros(5, 8).bfloat16()),
        TypeError,
        "weight must have the dtype of x, float32; got bfloat16",
    ),
    "weight stride": (
        dict(weight=torch.zeros(8, 5).t()),
        TypeError,
        "weight must have stride 1 in dimension -1; got 5",
    ),
    "bias shape": (dict(bias=torch.zeros(4)), ValueError, "bias must have shape (out_features) = (5,); got (4,)"),
    "bias dtype": (
        dict(bias=torch.zeros(5).double()),
        TypeError,
        "bias must have the dtype of x, float32; got float64",
    ),
    "bias stride": (dict(bias=torch.zeros(10)[::2]), TypeError, "bias must have stride 1 in dimension -1; got 2"),
    "out shape": (
        dict(out=torch.zeros(2, 6)),
        ValueError,
        "out must have shape (ntokens, out_features) = (2, 5); got (2, 6)",
    ),
    "out dtype": (
        dict(out=torch.zeros(2, 5).bfloat16()),
        TypeError,
        "out must have the dtype of x, float32; got bfloat16",
    ),
    "out stride": (dict(out=torch.zeros(5, 2).t()), TypeError, "out must have stride 1 in dimension -1; got 2"),
    "out overlaps itself": (
        dict(out=torch.zeros(1, 5).expand(2, 5)),
        TypeError,
        "out must have strides with which no two elements share memory; got shape (2, 5) with strides (0, 1)",
    ),
    "out rows overlap": (
        dict(out=torch.zeros(9).as_strided((2, 5), (4, 1))),
        TypeError,
        "out must have strides with which no two elements share memory; got shape (2, 5) with strides (4, 1)",
    ),
    "out is x": (
        dict(x=SHARED[:16].view(2, 8), out=SHARED[:10].view(2, 5)),
        TypeError,
        "out must share no memory with x; got one that does",
    ),
    "out overlaps weight": (
        dict(weight=SHARED[:40].view(5, 8), out=SHARED[39:49].view(2, 5)),
        TypeError,
        "out must share no memory with weight; got one that does",
    ),
    "out overlaps bias": (
        dict(bias=SHARED[9:14], out=SHARED[:10].view(2, 5)),
        TypeError,
        "out must share no memory with bias; got one that does",
    ),
    "out overlaps columns of x": (
        dict(x=SHARED[:24].view(2, 12)[:, :8], out=SHARED[:24].view(2, 12)[:, 7:]),
        TypeError,
        "out must share no memory with x; got one that does",
    ),
    "grad": (
        dict(weight=torch.zeros(5, 8, requires_grad=True)),
        ValueError,
        "weight must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    good = dict(x=torch.ones(2, 8), weight=torch.ones(5, 8), bias=torch.ones(5), out=torch.full((2, 5), 7.0))
    assert_refused(kind, f"skinny_linear: {sentence}", skinny_linear, **(good | change))
    assert_bitwise(good["out"], torch.full((2, 5), 7.0))


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_out_beside_x(shape):
    """Other columns of one matrix, or the memory right after x, share nothing with it."""
    x, weight, bias = make_inputs(shape=shape, in_features=8, out_features=5)
    expected = skinny_linear(x, weight, bias)
    matrix = torch.zeros(*shape, 13)
    for columns_of_x, columns_of_out in ((slice(0, 8), slice(8, 13)), (slice(5, 13), slice(0, 5))):
        matrix[..., columns_of_x] = x
        result = skinny_linear(matrix[..., columns_of_x], weight, bias, out=matrix[..., columns_of_out])
        assert_bitwise(result, expected)
        assert_bitwise(matrix[..., columns_of_x], x)
    memory = torch.cat([x.flatten(), torch.zeros(expected.numel())])
    x, out = memory[: x.numel()].view_as(x), memory[x.numel() :].view_as(expected)
    assert_bitwise(skinny_linear(x, weight, bias, out=out), expected)


def test_tensors_without_dimensions_are_refused():
    """Also where the wrapper allocates out."""
    scalar, x, weight = torch.tensor(3.0), torch.ones(2, 8), torch.ones(5, 8)
    for other in (weight, scalar):
        sentence = "skinny_linear: x must have 1 to 3 dimensions; got shape ()"
        assert_refused(ValueError, sentence, skinny_linear, scalar, other)
    assert_refused(ValueError, "skinny_linear: weight must have 2 dimensions; got shape ()", skinny_linear, x, scalar)


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias):
    x, weight, bias = make_inputs(bias=bias)
    torch.library.opcheck(torch.ops.llamba.skinny_linear.default, (x, weight, bias, torch.empty(2, 3, 32)))


def test_compiles_without_graph_break():
    inputs = make_inputs()
    compiled = torch.compile(lambda *args: skinny_linear(*args) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(*inputs), skinny_linear(*inputs) + 1)
