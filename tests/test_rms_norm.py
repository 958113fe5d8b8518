"""rms_norm: against the fp64 reference; rows, strides and threads do not change bits; the residual; what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, assert_refused, sliced, threads

from llamba_kernels.ops import gated_rms_norm, rms_norm
from llamba_kernels.testing import make_rms_norm_inputs, rms_norm_formula
from python_ref.rms_norm import rms_norm_ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BASE = dict(shape=(2, 3), width=128, residual=False, dtype=torch.float32)
CASES = {
    "base": {},
    "smollm2-135m": dict(width=576, residual=True),
    "8b hybrid": dict(shape=(1, 4), width=4096),
    "bf16": dict(dtype=torch.bfloat16),
    "bf16 residual": dict(dtype=torch.bfloat16, residual=True),
    "fp16": dict(dtype=torch.float16),
    "fp16 residual": dict(dtype=torch.float16, residual=True),
    "per head": dict(shape=(2, 3, 4), width=80),
    "per head residual": dict(shape=(2, 3, 4), width=5, residual=True),
    "width 0": dict(width=0),
    "width 1": dict(width=1),
    "width 15": dict(width=15, residual=True),
    "width 16": dict(width=16),
    "width 17": dict(width=17, residual=True),
    "bf16 width 33": dict(width=33, dtype=torch.bfloat16, residual=True),
    "one row": dict(shape=(), residual=True),
    "rows": dict(shape=(5,)),
    "no rows": dict(shape=(0, 3), residual=True),
}


def make_inputs(**change):
    return make_rms_norm_inputs(**(BASE | change))


def call(inputs):
    """out and the new residual, of copies."""
    x, weight, eps, residual = inputs
    residual = None if residual is None else residual.clone()
    return rms_norm(x, weight, eps, residual), residual


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change):
    inputs = make_inputs(**change)
    out, residual = call(inputs)
    expected, expected_residual = rms_norm_ref(*inputs)
    assert out.dtype == inputs[0].dtype
    if out.numel():
        assert_close_to_ref(out, expected, rms_norm_formula(*inputs))
    if residual is not None:
        assert_bitwise(residual, expected_residual)


def test_reference_against_torch():
    x, weight, eps, residual = make_inputs(dtype=torch.float64, residual=True)
    expected = torch.nn.functional.rms_norm(x + residual, x.shape[-1:], weight, eps)
    torch.testing.assert_close(rms_norm_ref(x, weight, eps, residual)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_is_an_addition_and_a_norm(dtype):
    """Bit for bit; and the norm is that of gated_rms_norm without a gate."""
    x, weight, eps, residual = make_inputs(width=85, dtype=dtype, residual=True)
    total = residual + x
    out, summed = call((x, weight, eps, residual))
    assert_bitwise(summed, total)
    assert_bitwise(out, rms_norm(total, weight, eps))
    assert_bitwise(out, gated_rms_norm(total, None, weight, eps, 85))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_values(dtype):
    """Zeros and rows of huge and tiny values stay finite and right."""
    x, weight, eps, _ = make_inputs(shape=(4,), width=40, dtype=dtype)
    x[0] = 0
    x[1] *= 1e15
    x[2] *= 1e-15
    out, expected = rms_norm(x, weight, eps), rms_norm_ref(x, weight, eps)[0]
    for row in range(4):
        assert_close_to_ref(out[row], expected[row], rms_norm_formula(x, weight, eps)[row])


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [576, 85])
def test_a_row_has_the_same_bits_among_any_others(width, dtype, residual):
    """Alone, with 1 to 63 others, shuffled, as rows, batch or heads, on 1 to 3 threads."""
    inputs = make_inputs(shape=(64,), width=width, dtype=dtype, residual=residual)
    x, weight, eps, residual = inputs
    alone = torch.stack(
        [call((x[i], weight, eps, residual if residual is None else residual[i]))[0] for i in range(64)]
    )

    def among(index):
        return call((x[index], weight, eps, residual if residual is None else residual[index]))[0]

    for count in range(1, 65):
        with threads(1 + count % 3):
            assert_bitwise(among(slice(count)), alone[:count])
    order = torch.randperm(64)
    assert_bitwise(among(order), alone[order])
    for shape in ((16, 4), (4, 8, 2), (64, 1, 1)):
        assert_bitwise(among(torch.arange(64).view(shape)), alone.view(*shape, width))
    large = rms_norm(alone.repeat(40, 1), weight, eps)  # enough rows for several threads
    with threads(1):
        assert_bitwise(rms_norm(alone.repeat(40, 1), weight, eps), large)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_change_each_other(dtype):
    x, weight, eps, residual = make_inputs(shape=(8,), dtype=dtype, residual=True)
    out, summed = call((x, weight, eps, residual))
    x[3] = float("nan")
    spoiled, spoiled_sum = call((x, weight, eps, residual))
    others = [0, 1, 2, 4, 5, 6, 7]
    assert spoiled[3].isnan().all() and spoiled_sum[3].isnan().all()
    assert_bitwise(spoiled[others], out[others])
    assert_bitwise(spoiled_sum[others], summed[others])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("width", [16, 45])
def test_strides_and_bystanders(width, shape, dtype):
    x, weight, eps, residual = make_inputs(shape=shape, width=width, dtype=dtype, residual=True)
    expected, summed = call((x, weight, eps, residual))
    out, total = Surrounded(torch.zeros_like(x), fill=7.0), Surrounded(residual, fill=7.0)
    result = rms_norm(sliced(x), sliced(weight), eps, total.inner, out=out.inner)
    assert result is out.inner
    assert_bitwise(out.inner, expected)
    assert_bitwise(total.inner, summed)
    out.assert_surroundings_untouched()
    total.assert_surroundings_untouched()


@pytest.mark.parametrize("residual", [False, True])
def test_in_place(residual):
    x, weight, eps, residual = make_inputs(width=100, residual=residual)
    expected, _ = call((x, weight, eps, residual))
    assert_bitwise(rms_norm(x, weight, eps, residual, out=x), expected)


SHARED = torch.ones(3, 8)
REFUSED = {
    "x dtype": (dict(x=torch.zeros(2, 8).double()), TypeError, "x must be float32, bfloat16 or float16; got float64"),
    "x dim": (
        dict(x=torch.zeros(1, 1, 1, 2, 8)),
        ValueError,
        "x must have 1 to 4 dimensions; got shape (1, 1, 1, 2, 8)",
    ),
    "x stride": (dict(x=torch.zeros(8, 2).t()), TypeError, "x must have stride 1 in dimension -1; got 2"),
    "weight shape": (dict(weight=torch.zeros(7)), ValueError, "weight must have shape (width) = (8,); got (7,)"),
    "weight dtype": (
        dict(weight=torch.zeros(8).double()),
        TypeError,
        "weight must have the dtype of x, float32; got float64",
    ),
    "weight stride": (dict(weight=torch.zeros(16)[::2]), TypeError, "weight must have stride 1 in dimension -1; got 2"),
    "eps": (dict(eps=0.0), ValueError, "eps must be positive; got 0"),
    "eps nan": (dict(eps=float("nan")), ValueError, "eps must be positive; got nan"),
    "eps 1e-50": (dict(eps=1e-50), ValueError, "eps must be in the range of float32; got 1e-50"),
    "residual shape": (
        dict(residual=torch.zeros(3, 8)),
        ValueError,
        "residual must have the shape of x, (2, 8); got (3, 8)",
    ),
    "residual dtype": (
        dict(residual=torch.zeros(2, 8).half()),
        TypeError,
        "residual must have the dtype of x, float32; got float16",
    ),
    "residual stride": (
        dict(residual=torch.zeros(8, 2).t()),
        TypeError,
        "residual must have stride 1 in dimension -1; got 2",
    ),
    "residual is x": (
        dict(x=SHARED[:2], residual=SHARED[:2]),
        TypeError,
        "residual must share no memory with x; got one that does",
    ),
    "residual overlaps itself": (
        dict(residual=torch.zeros(1, 8).expand(2, 8)),
        TypeError,
        "residual must have strides with which no two elements share memory; got shape (2, 8) with strides (0, 1)",
    ),
    "out shape": (dict(out=torch.zeros(8)), ValueError, "out must have the shape of x, (2, 8); got (8,)"),
    "out dtype": (dict(out=torch.zeros(2, 8).half()), TypeError, "out must have the dtype of x, float32; got float16"),
    "out stride": (dict(out=torch.zeros(8, 2).t()), TypeError, "out must have stride 1 in dimension -1; got 2"),
    "out overlaps x": (
        dict(x=SHARED[:2], out=SHARED[1:]),
        TypeError,
        "out must be x itself or share no memory with x; got one that overlaps it in part",
    ),
    "out overlaps weight": (
        dict(weight=SHARED[1], out=SHARED[:2]),
        TypeError,
        "out must share no memory with weight; got one that does",
    ),
    "out is residual": (
        dict(residual=SHARED[:2], out=SHARED[:2]),
        TypeError,
        "out must share no memory with residual; got one that does",
    ),
    "grad": (
        dict(weight=torch.zeros(8, requires_grad=True)),
        ValueError,
        "weight must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    good = dict(x=torch.ones(2, 8), weight=torch.ones(8), eps=1e-5, residual=torch.full((2, 8), 5.0))
    good["out"] = torch.full((2, 8), 7.0)
    assert_refused(kind, f"rms_norm: {sentence}", rms_norm, **(good | change))
    assert_bitwise(good["out"], torch.full((2, 8), 7.0))
    assert_bitwise(good["residual"], torch.full((2, 8), 5.0))


@pytest.mark.parametrize("residual", [True, False])
def test_opcheck(residual):
    inputs = make_inputs(residual=residual)
    torch.library.opcheck(torch.ops.llamba.rms_norm.default, (*inputs, torch.empty_like(inputs[0])))


@pytest.mark.parametrize("residual", [True, False])
def test_compiles_without_graph_break(residual):
    x, weight, eps, residual = make_inputs(residual=residual)
    expected, summed = call((x, weight, eps, residual))
    compiled = torch.compile(lambda *args: rms_norm(*args) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(x, weight, eps, residual), expected + 1)
    if residual is not None:
        assert_bitwise(residual, summed)
