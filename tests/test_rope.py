"""rope: against the fp64 reference; tokens, strides and threads do not change bits; padding; what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, assert_refused, sliced, threads

from llamba_kernels.ops import rope
from llamba_kernels.testing import make_rope_inputs, rope_formula
from python_ref.rope import rope_ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BASE = dict(batch=2, ntokens=3, nheads=4, head_dim=64, rotary_dim=64, npositions=50, dtype=torch.float32)
CASES = {
    "base": {},
    "8b": dict(batch=1, ntokens=4, nheads=40, head_dim=128, rotary_dim=128, npositions=4096),
    "bf16": dict(dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "head_dim 80": dict(head_dim=80, rotary_dim=80),
    "head_dim 6": dict(head_dim=6, rotary_dim=6),
    "head_dim 2": dict(head_dim=2, rotary_dim=2),
    "partial": dict(rotary_dim=32),
    "partial, odd rest": dict(head_dim=25, rotary_dim=10),
    "partial bf16": dict(head_dim=80, rotary_dim=34, dtype=torch.bfloat16),
    "none rotated": dict(rotary_dim=0),
    "one head": dict(nheads=1),
    "one token": dict(batch=1, ntokens=1),
    "no tokens": dict(ntokens=0),
}


def make_inputs(**change):
    return make_rope_inputs(**(BASE | change))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change, interleaved):
    inputs = make_inputs(**change)
    out = rope(*inputs, interleaved=interleaved)
    assert out.dtype == inputs[0].dtype
    if out.numel():
        assert_close_to_ref(out, rope_ref(*inputs, interleaved), rope_formula(*inputs, interleaved))


@pytest.mark.parametrize("interleaved", [False, True])
def test_reference_against_complex_multiplication(interleaved):
    x, cos, sin, positions = make_inputs(dtype=torch.float64)
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turn = torch.complex(cos.double(), sin.double())[positions].unsqueeze(2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    expected = turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)
    torch.testing.assert_close(rope_ref(x, cos, sin, positions, interleaved), expected)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 22])
def test_a_token_has_the_same_bits_among_any_others(head_dim, dtype, interleaved):
    """Alone, with 1 to 63 others, shuffled, as a window or a batch, any head alone, on 1 to 3 threads."""
    x, cos, sin, positions = make_inputs(batch=1, ntokens=64, head_dim=head_dim, rotary_dim=head_dim, dtype=dtype)

    def run(x, positions):
        return rope(x, cos, sin, positions, interleaved=interleaved)

    alone = torch.cat([run(x[:, i : i + 1], positions[:, i : i + 1]) for i in range(64)], 1)
    for count in range(1, 65):
        with threads(1 + count % 3):
            assert_bitwise(run(x[:, :count], positions[:, :count]), alone[:, :count])
    order = torch.randperm(64)
    assert_bitwise(run(x[:, order], positions[:, order]), alone[:, order])
    assert_bitwise(run(x.view(16, 4, 4, -1), positions.view(16, 4)), alone.view(16, 4, 4, -1))
    assert_bitwise(run(x[:, :, 2:3], positions), alone[:, :, 2:3])
    many = x.repeat(1, 40, 1, 1), positions.repeat(1, 40)  # enough for several threads
    for count in (1, 2, 3):
        with threads(count):
            assert_bitwise(run(*many), alone.repeat(1, 40, 1, 1))


@pytest.mark.parametrize("interleaved", [False, True])
def test_padding_is_zero_whatever_it_holds(interleaved):
    x, cos, sin, positions = make_inputs(ntokens=4)
    expected = rope(x, cos, sin, positions, interleaved=interleaved)
    positions[0, 2], positions[1, 3] = -1, -7
    x[0, 2] = x[1, 3] = float("nan")
    expected[0, 2] = expected[1, 3] = 0
    assert_bitwise(rope(x, cos, sin, positions, interleaved=interleaved), expected)
    assert_bitwise(rope(x, cos, sin, positions, interleaved=interleaved, out=x), expected)


@pytest.mark.cpu_only
def test_a_position_too_large_is_refused():
    x, cos, sin, positions = make_inputs(npositions=5)
    positions[1, 1] = 5
    out = torch.full_like(x, 7.0)
    sentence = "rope: positions must be below npositions = 5; got 5 for token 1 of sequence 1"
    assert_refused(ValueError, sentence, rope, x, cos, sin, positions, out=out)
    assert_bitwise(out, torch.full_like(x, 7.0))


@pytest.mark.device_only
@pytest.mark.parametrize("position", [50, 2**31 - 1])
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_position_too_large_is_padding(interleaved, position):
    x, cos, sin, positions = make_inputs(ntokens=4, rotary_dim=32)
    positions[1, 2] = -1
    expected = rope(x, cos, sin, positions, interleaved=interleaved)
    positions[1, 2] = position
    assert_bitwise(rope(x, cos, sin, positions, interleaved=interleaved), expected)


def test_tokens_do_not_change_each_other():
    x, cos, sin, positions = make_inputs(ntokens=4)
    out = rope(x, cos, sin, positions)
    x[1, 2] = float("nan")
    spoiled = rope(x, cos, sin, positions)
    assert spoiled[1, 2].isnan().all()
    others = torch.ones(2, 4, dtype=torch.bool)
    others[1, 2] = False
    assert_bitwise(spoiled[others], out[others])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotary_dim", [32, 10, 64])
def test_strides_and_bystanders(rotary_dim, dtype, interleaved):
    inputs = make_inputs(rotary_dim=rotary_dim, dtype=dtype)
    expected = rope(*inputs, interleaved=interleaved)
    out = Surrounded(torch.zeros_like(expected), fill=7.0)
    result = rope(*(sliced(t) for t in inputs), interleaved=interleaved, out=out.inner)
    assert result is out.inner
    assert_bitwise(out.inner, expected)
    out.assert_surroundings_untouched()


@pytest.mark.parametrize("interleaved", [False, True])
def test_in_place_among_the_columns_of_a_fused_projection(interleaved):
    """q and k are adjacent heads of q, k, v: one call rotates both and leaves v alone."""
    x, cos, sin, positions = make_inputs(nheads=6, rotary_dim=32)
    expected = rope(x[:, :, :5], cos, sin, positions, interleaved=interleaved)
    v = x[:, :, 5].clone()
    assert_bitwise(rope(x[:, :, :5], cos, sin, positions, interleaved=interleaved, out=x[:, :, :5]), expected)
    assert_bitwise(x[:, :, 5], v)


SHARED = torch.ones(60)
REFUSED = {
    "x dtype": (
        dict(x=torch.zeros(2, 3, 1, 8).double()),
        TypeError,
        "x must be float32, bfloat16 or float16; got float64",
    ),
    "x dim": (dict(x=torch.zeros(2, 3, 8)), ValueError, "x must have 4 dimensions; got shape (2, 3, 8)"),
    "x stride": (
        dict(x=torch.zeros(2, 3, 8, 2).mT),
        TypeError,
        "x must have stride 1 in dimension -1; got 2",
    ),
    "cos dim": (dict(cos=torch.zeros(4)), ValueError, "cos must have 2 dimensions; got shape (4,)"),
    "cos dtype": (dict(cos=torch.zeros(5, 4).half()), TypeError, "cos must be float32; got float16"),
    "cos stride": (dict(cos=torch.zeros(4, 5).t()), TypeError, "cos must have stride 1 in dimension -1; got 5"),
    "cos width": (
        dict(cos=torch.zeros(5, 5), sin=torch.zeros(5, 5)),
        ValueError,
        "rotary_dim (twice the width of cos) must be even and at most head_dim = 8; got 10",
    ),
    "sin shape": (dict(sin=torch.zeros(6, 4)), ValueError, "sin must have the shape of cos, (5, 4); got (6, 4)"),
    "sin dtype": (dict(sin=torch.zeros(5, 4).double()), TypeError, "sin must be float32; got float64"),
    "positions shape": (
        dict(positions=torch.zeros(3, 2, dtype=torch.int32)),
        ValueError,
        "positions must have shape (batch, ntokens) = (2, 3); got (3, 2)",
    ),
    "positions dtype": (
        dict(positions=torch.zeros(2, 3, dtype=torch.int64)),
        TypeError,
        "positions must be int32; got int64",
    ),
    "out shape": (
        dict(out=torch.zeros(2, 3, 2, 8)),
        ValueError,
        "out must have the shape of x, (2, 3, 1, 8); got (2, 3, 2, 8)",
    ),
    "out dtype": (
        dict(out=torch.zeros(2, 3, 1, 8).half()),
        TypeError,
        "out must have the dtype of x, float32; got float16",
    ),
    "out overlaps itself": (
        dict(out=torch.zeros(1, 1, 1, 8).expand(2, 3, 1, 8)),
        TypeError,
        "out must have strides with which no two elements share memory; got shape (2, 3, 1, 8) with strides "
        "(0, 0, 8, 1)",
    ),
    "out overlaps x": (
        dict(x=SHARED[:48].view(2, 3, 1, 8), out=SHARED[8:56].view(2, 3, 1, 8)),
        TypeError,
        "out must be x itself or share no memory with x; got one that overlaps it in part",
    ),
    "out overlaps cos": (
        dict(cos=SHARED[40:60].view(5, 4), out=SHARED[:48].view(2, 3, 1, 8)),
        TypeError,
        "out must share no memory with cos; got one that does",
    ),
    "a number for a bool": (dict(interleaved=1), TypeError, "interleaved must be a bool; got int 1"),
    "None for a bool": (dict(interleaved=None), TypeError, "interleaved must be a bool; got None"),
    "grad": (
        dict(x=torch.zeros(2, 3, 1, 8, requires_grad=True)),
        ValueError,
        "x must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    good = dict(x=torch.ones(2, 3, 1, 8), cos=torch.ones(5, 4), sin=torch.ones(5, 4))
    good |= dict(positions=torch.ones(2, 3, dtype=torch.int32), out=torch.full((2, 3, 1, 8), 7.0))
    assert_refused(kind, f"rope: {sentence}", rope, **(good | change))
    assert_bitwise(good["out"], torch.full((2, 3, 1, 8), 7.0))


def test_opcheck():
    inputs = make_inputs()
    torch.library.opcheck(torch.ops.llamba.rope.default, (*inputs, False, torch.empty_like(inputs[0])))


def test_compiles_without_graph_break():
    inputs = make_inputs()
    compiled = torch.compile(lambda *args: rope(*args) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(*inputs), rope(*inputs) + 1)
