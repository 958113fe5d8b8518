"""gated_rms_norm: against the fp64 reference; rows, strides and threads do not change bits; what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, assert_refused, sliced, threads

from llamba_kernels.ops import gated_rms_norm
from llamba_kernels.testing import gated_rms_norm_formula, make_gated_rms_norm_inputs
from python_ref.gated_rms_norm import gated_rms_norm_ref

BASE = dict(shape=(2, 3), width=128, group_size=None, gate=True, dtype=torch.float32)
CASES = {
    "base": {},
    "smollm2-135m": dict(width=576, gate=False),
    "8b hybrid": dict(shape=(1, 4), width=4096),
    "bf16": dict(dtype=torch.bfloat16),
    "bf16 no gate": dict(dtype=torch.bfloat16, gate=False),
    "fp16": dict(dtype=torch.float16),
    "8 groups": dict(width=1024, group_size=128),
    "groups of 5": dict(width=15, group_size=5),
    "groups of 1": dict(width=3, group_size=1),
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
    return make_gated_rms_norm_inputs(**(BASE | change))


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change):
    inputs = make_inputs(**change)
    out = gated_rms_norm(*inputs)
    assert out.dtype == inputs[0].dtype
    if out.numel():
        assert_close_to_ref(out, gated_rms_norm_ref(*inputs), gated_rms_norm_formula(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate", [True, False])
def test_extreme_values(dtype, gate):
    """Zeros, gates wide open and shut, and rows of huge and tiny values stay finite and right."""
    x, z, weight, eps, group_size = make_inputs(shape=(6,), width=40, gate=gate, dtype=dtype)
    x[0] = 0
    x[1] *= 1e15
    x[2] *= 1e-15
    if gate:
        z[3], z[4] = 200, -200
    out = gated_rms_norm(x, z, weight, eps, group_size)
    expected = gated_rms_norm_ref(x, z, weight, eps, group_size)
    for row in [0, 1, 2, 3, 5] if gate else range(6):
        assert_close_to_ref(out[row], expected[row], gated_rms_norm_formula(x, z, weight, eps, group_size)[row])
    assert not gate or out[4].abs().max() < 1e-30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group_size", [1536, 512])
def test_rows_do_not_change_each_other(dtype, group_size):
    """A row alone, or among others of which one is NaN, on one thread or more: the same bits."""
    x, z, weight, eps, _ = make_inputs(shape=(4, 16), width=1536, dtype=dtype)
    out = gated_rms_norm(x, z, weight, eps, group_size)
    with threads(1):
        assert_bitwise(gated_rms_norm(x, z, weight, eps, group_size), out)
    assert_bitwise(gated_rms_norm(x[2, 5], z[2, 5], weight, eps, group_size), out[2, 5])
    x[0, 0] = float("nan")
    spoiled = gated_rms_norm(x, z, weight, eps, group_size)
    assert spoiled[0, 0].isnan().all()
    assert_bitwise(spoiled.flatten(0, 1)[1:], out.flatten(0, 1)[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [16, 45])
def test_strides_and_bystanders(dtype, width):
    x, z, weight, eps, group_size = make_inputs(width=width, dtype=dtype)
    expected = gated_rms_norm(x, z, weight, eps, group_size)
    out = Surrounded(torch.zeros_like(x), fill=7.0)
    result = gated_rms_norm(sliced(x), sliced(z), sliced(weight), eps, group_size, out=out.inner)
    assert result is out.inner
    assert_bitwise(out.inner, expected)
    out.assert_surroundings_untouched()


@pytest.mark.parametrize("target", ["x", "z"])
def test_in_place(target):
    x, z, weight, eps, group_size = make_inputs(width=100)
    expected = gated_rms_norm(x, z, weight, eps, group_size)
    assert_bitwise(gated_rms_norm(x, z, weight, eps, group_size, out={"x": x, "z": z}[target]), expected)


SHARED = torch.ones(3, 8)
REFUSED = {
    "x dtype": (dict(x=torch.zeros(2, 8).double()), TypeError, "x must be float32, bfloat16 or float16; got float64"),
    "x dim": (dict(x=torch.zeros(1, 1, 2, 8)), ValueError, "x must have 1 to 3 dimensions; got shape (1, 1, 2, 8)"),
    "x stride": (dict(x=torch.zeros(8, 2).t()), TypeError, "x must have stride 1 in dimension -1; got 2"),
    "z shape": (dict(z=torch.zeros(3, 8)), ValueError, "z must have the shape of x, (2, 8); got (3, 8)"),
    "z dtype": (dict(z=torch.zeros(2, 8).bfloat16()), TypeError, "z must have the dtype of x, float32; got bfloat16"),
    "z stride": (dict(z=torch.zeros(8, 2).t()), TypeError, "z must have stride 1 in dimension -1; got 2"),
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
    "eps 1e39": (dict(eps=1e39), ValueError, "eps must be in the range of float32; got 1e+39"),
    "group_size": (dict(group_size=3), ValueError, "group_size must divide the width of x, 8; got 3"),
    "group_size 0": (dict(group_size=0), ValueError, "group_size must divide the width of x, 8; got 0"),
    "out shape": (dict(out=torch.zeros(8)), ValueError, "out must have the shape of x, (2, 8); got (8,)"),
    "out dtype": (dict(out=torch.zeros(2, 8).half()), TypeError, "out must have the dtype of x, float32; got float16"),
    "out stride": (dict(out=torch.zeros(8, 2).t()), TypeError, "out must have stride 1 in dimension -1; got 2"),
    "out overlaps itself": (
        dict(out=torch.zeros(1, 8).expand(2, 8)),
        TypeError,
        "out must have strides with which no two elements share memory; got shape (2, 8) with strides (0, 1)",
    ),
    "out overlaps x": (
        dict(x=SHARED[:2], out=SHARED[1:]),
        TypeError,
        "out must be x itself or share no memory with x; got one that overlaps it in part",
    ),
    "out overlaps z": (
        dict(z=SHARED[1:], out=SHARED[:2]),
        TypeError,
        "out must be z itself or share no memory with z; got one that overlaps it in part",
    ),
    "out overlaps weight": (
        dict(weight=SHARED[1], out=SHARED[:2]),
        TypeError,
        "out must share no memory with weight; got one that does",
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
    good = dict(x=torch.ones(2, 8), z=torch.ones(2, 8), weight=torch.ones(8), eps=1e-5, group_size=8)
    good["out"] = torch.full((2, 8), 7.0)
    assert_refused(kind, f"gated_rms_norm: {sentence}", gated_rms_norm, **(good | change))
    assert_bitwise(good["out"], torch.full((2, 8), 7.0))


def test_a_device_without_a_kernel_is_refused_in_one_line():
    """Sparse tensors stand for such a device: torch has no kernel of ours for them either."""
    assert_refused(
        TypeError,
        "gated_rms_norm: tensors must be plain strided ones on a device that the operator's docstring names; "
        "got sparse_coo on cpu, strided on cpu",
        gated_rms_norm,
        torch.ones(2, 8).to_sparse(),
        None,
        torch.ones(8),
        1e-5,
        8,
        out=torch.ones(2, 8),
    )


@pytest.mark.parametrize("gate", [True, False])
def test_opcheck(gate):
    x, z, weight, eps, group_size = make_inputs(gate=gate)
    torch.library.opcheck(torch.ops.llamba.gated_rms_norm.default, (x, z, weight, eps, group_size, torch.empty_like(x)))


def test_compiles_without_graph_break():
    inputs = make_inputs()
    compiled = torch.compile(lambda *args: gated_rms_norm(*args) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(*inputs), gated_rms_norm(*inputs) + 1)
