"""silu_mul: against the fp64 reference; rows, places, strides and threads do not change bits; what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, assert_refused, sliced, threads

from llamba_kernels.ops import silu_mul
from llamba_kernels.testing import make_silu_mul_inputs, silu_mul_formula
from python_ref.silu_mul import silu_mul_ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BASE = dict(shape=(2, 3), width=128, dtype=torch.float32)
CASES = {
    "base": {},
    "smollm2-135m": dict(width=1536),
    "bf16": dict(dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "width 0": dict(width=0),
    "width 1": dict(width=1),
    "width 15": dict(width=15),
    "width 16": dict(width=16),
    "width 17": dict(width=17),
    "bf16 width 33": dict(width=33, dtype=torch.bfloat16),
    "one row": dict(shape=()),
    "rows": dict(shape=(5,)),
    "no rows": dict(shape=(0, 3)),
}


def make_inputs(**change):
    return make_silu_mul_inputs(**(BASE | change))


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change):
    gate, up = make_inputs(**change)
    out = silu_mul(gate, up)
    assert out.dtype == gate.dtype
    expected = silu_mul_ref(gate, up)
    assert out.shape == expected.shape
    if out.numel():
        assert_close_to_ref(out, expected, silu_mul_formula(gate, up))


def test_reference_against_torch():
    gate, up = make_inputs(dtype=torch.float64)
    torch.testing.assert_close(silu_mul_ref(gate, up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values(dtype):
    """Gates wide open and shut, zeros and infinities."""
    least = torch.finfo(dtype).min
    gate = torch.tensor([200.0, -200.0, 0.0, -0.0, torch.inf, torch.nan, 1e-30, 3.0, least], dtype=dtype)
    up = torch.tensor([2.0, 2.0, 5.0, 5.0, 1.0, 1.0, 1.0, torch.nan, 1.0], dtype=dtype)
    out = silu_mul(gate, up)
    assert out[0] == 400 and out[1].abs() <= 1e-30 and out[2:4].tolist() == [0.0, 0.0]
    assert out[4] == torch.inf and out[5].isnan() and out[6].abs() <= 1e-30 and out[7].isnan()
    assert out[8].abs() <= 1e-30
    huge = torch.full((1,), torch.finfo(dtype).max, dtype=dtype)
    assert silu_mul(-torch.full_like(huge, 1000.0), huge) == 0 and silu_mul(-huge, huge) == 0
    assert silu_mul(torch.full_like(huge, -torch.inf), huge).isnan()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [576, 85])
def test_a_row_has_the_same_bits_among_any_others(width, dtype):
    """Alone, with 1 to 63 others, shuffled, as rows or a batch, on 1 to 3 threads."""
    gate, up = make_inputs(shape=(64,), width=width, dtype=dtype)
    alone = torch.stack([silu_mul(*pair) for pair in zip(gate, up, strict=True)])
    for count in range(1, 65):
        with threads(1 + count % 3):
            assert_bitwise(silu_mul(gate[:count], up[:count]), alone[:count])
    order = torch.randperm(64)
    assert_bitwise(silu_mul(gate[order], up[order]), alone[order])
    assert_bitwise(silu_mul(gate.view(16, 4, -1), up.view(16, 4, -1)), alone.view(16, 4, -1))
    many = [t.repeat(40, 1) for t in (gate, up, alone)]  # enough rows for several threads
    for count in (1, 2, 3):
        with threads(count):
            assert_bitwise(silu_mul(*many[:2]), many[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_has_the_same_bits_at_any_place(dtype):
    gate, up = make_inputs(shape=(), width=40, dtype=dtype)
    out = silu_mul(gate, up)
    for first in range(40):
        assert_bitwise(silu_mul(gate[first:], up[first:]), out[first:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_change_each_other(dtype):
    gate, up = make_inputs(shape=(8,), dtype=dtype)
    out = silu_mul(gate, up)
    gate[3] = float("nan")
    spoiled = silu_mul(gate, up)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert spoiled[3].isnan().all()
    assert_bitwise(spoiled[others], out[others])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 45])
def test_strides_and_bystanders(width, dtype):
    gate, up = make_inputs(width=width, dtype=dtype)
    expected = silu_mul(gate, up)
    out = Surrounded(torch.zeros_like(gate), fill=7.0)
    assert silu_mul(sliced(gate), sliced(up), out=out.inner) is out.inner
    assert_bitwise(out.inner, expected)
    out.assert_surroundings_untouched()
    assert_bitwise(silu_mul(*torch.cat([gate, up], -1).chunk(2, -1)), expected)  # columns of one projection


@pytest.mark.parametrize("target", [0, 1])
def test_in_place(target):
    inputs = make_inputs(width=100)
    expected = silu_mul(*inputs)
    assert_bitwise(silu_mul(*inputs, out=inputs[target]), expected)


SHARED = torch.ones(3, 8)
REFUSED = {
    "gate dtype": (
        dict(gate=torch.zeros(2, 8).double()),
        TypeError,
        "gate must be float32, bfloat16 or float16; got float64",
    ),
    "gate dim": (
        dict(gate=torch.zeros(1, 1, 2, 8)),
        ValueError,
        "gate must have 1 to 3 dimensions; got shape (1, 1, 2, 8)",
    ),
    "gate stride": (dict(gate=torch.zeros(8, 2).t()), TypeError, "gate must have stride 1 in dimension -1; got 2"),
    "up shape": (dict(up=torch.zeros(2, 7)), ValueError, "up must have the shape of gate, (2, 8); got (2, 7)"),
    "up dtype": (dict(up=torch.zeros(2, 8).half()), TypeError, "up must have the dtype of gate, float32; got float16"),
    "up stride": (dict(up=torch.zeros(8, 2).t()), TypeError, "up must have stride 1 in dimension -1; got 2"),
    "out shape": (dict(out=torch.zeros(8)), ValueError, "out must have the shape of gate, (2, 8); got (8,)"),
    "out dtype": (
        dict(out=torch.zeros(2, 8).half()),
        TypeError,
        "out must have the dtype of gate, float32; got float16",
    ),
    "out stride": (dict(out=torch.zeros(8, 2).t()), TypeError, "out must have stride 1 in dimension -1; got 2"),
    "out overlaps itself": (
        dict(out=torch.zeros(1, 8).expand(2, 8)),
        TypeError,
        "out must have strides with which no two elements share memory; got shape (2, 8) with strides (0, 1)",
    ),
    "out overlaps gate": (
        dict(gate=SHARED[:2], out=SHARED[1:]),
        TypeError,
        "out must be gate itself or share no memory with gate; got one that overlaps it in part",
    ),
    "out overlaps up": (
        dict(up=SHARED[1:], out=SHARED[:2]),
        TypeError,
        "out must be up itself or share no memory with up; got one that overlaps it in part",
    ),
    "grad": (
        dict(gate=torch.zeros(2, 8, requires_grad=True)),
        ValueError,
        "gate must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    good = dict(gate=torch.ones(2, 8), up=torch.ones(2, 8), out=torch.full((2, 8), 7.0))
    assert_refused(kind, f"silu_mul: {sentence}", silu_mul, **(good | change))
    assert_bitwise(good["out"], torch.full((2, 8), 7.0))


def test_opcheck():
    gate, up = make_inputs()
    torch.library.opcheck(torch.ops.llamba.silu_mul.default, (gate, up, torch.empty_like(gate)))


def test_compiles_without_graph_break():
    inputs = make_inputs()
    compiled = torch.compile(lambda *args: silu_mul(*args) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(*inputs), silu_mul(*inputs) + 1)
