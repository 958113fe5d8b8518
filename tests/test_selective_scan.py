"""selective_scan: against the fp64 reference; cuts, packing, blocks, strides and threads do not change bits."""

import pytest
import torch
from helpers import assert_bitwise, assert_close_to_ref, sliced, threads

from llamba_kernels.ops import selective_scan
from llamba_kernels.testing_scan import make_selective_scan_inputs
from python_ref.selective_scan import selective_scan_closed, selective_scan_ref

BASE = dict(batch=2, length=70, d_inner=48)
CASES = {
    "base": {},
    "mamba-130m": dict(batch=1, length=20, d_inner=1536),
    "bf16": dict(dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "no gate": dict(gate=False),
    "no D, no dt_bias": dict(bias=False),
    "1 token": dict(length=1),
    "63 tokens": dict(length=63),
    "64 tokens": dict(length=64),
    "65 tokens": dict(length=65),
    "129 tokens": dict(length=129),
    "dstate 1": dict(dstate=1),
    "dstate 15": dict(dstate=15),
    "dstate 17": dict(dstate=17),
    "dstate 64": dict(dstate=64),
    "bf16 dstate 20": dict(dstate=20, dtype=torch.bfloat16),
    "1 channel": dict(d_inner=1),
    "17 channels": dict(d_inner=17),
    "bf16 83 channels": dict(d_inner=83, dtype=torch.bfloat16),
    "heads as in the attention-initialised block": dict(d_inner=128, B_heads=2, C_heads=8),
    "bf16 heads": dict(d_inner=96, B_heads=2, C_heads=6, dtype=torch.bfloat16),
    "heads that share no block": dict(d_inner=60, B_heads=4, C_heads=6),
    "a head for every channel": dict(d_inner=5, B_heads=5, C_heads=5),
}


def every(inputs, **options):
    """y, final state and the states after every 32nd token."""
    return selective_scan(**inputs, **options, state_every=32, return_final_state=True)


def expected(inputs, dtype=torch.float64, **options):
    return selective_scan_ref(**inputs, **options, state_every=32, compute_dtype=dtype)


def assert_all_close(results, inputs, **options):
    reference, formula = (expected(inputs, dtype, **options) for dtype in (torch.float64, torch.float32))
    for result, each, torch_result in zip(results, reference, formula, strict=True):
        if result.numel():
            assert_close_to_ref(result, each, torch_result.to(result.dtype))


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change):
    inputs = make_selective_scan_inputs(**(BASE | change))
    initial_state = torch.randn(inputs["x"].shape[0], *inputs["A"].shape)
    results = every(inputs, initial_state=initial_state)
    assert [t.dtype for t in results] == [inputs["x"].dtype, torch.float32, torch.float32]
    assert_all_close(results, inputs, initial_state=initial_state)
    y = selective_scan(**inputs)
    assert_close_to_ref(y, expected(inputs)[0], expected(inputs, torch.float32)[0].to(y.dtype))


def test_the_reference_is_the_closed_form():
    inputs = make_selective_scan_inputs(2, 9, 6, 5, gate=False, bias=False)
    del inputs["B_heads"], inputs["C_heads"]
    wide = {name: None if value is None else value.double() for name, value in inputs.items()}
    y = selective_scan_ref(**wide)[0]
    step = torch.nn.functional.softplus(wide["dt"])
    torch.testing.assert_close(y, selective_scan_closed(wide["x"], step, wide["A"], wide["B"], wide["C"]))


def test_dt_as_it_is():
    inputs = make_selective_scan_inputs(**BASE)
    inputs["dt"], inputs["dt_bias"] = torch.rand(2, 70, 48) / 10, torch.rand(48) / 10
    assert_all_close(every(inputs, dt_softplus=False), inputs, dt_softplus=False)


def test_extreme_decays():
    """A state that is kept, and one that is forgotten at once, over many tokens."""
    inputs = make_selective_scan_inputs(1, 500, 16)
    inputs["A"][:8], inputs["A"][8:] = -1e-4, -1e4
    assert_all_close(every(inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cut", [1, 30, 64, 65, 99])
def test_a_scan_continues_from_its_state(dtype, cut):
    """Two calls of which the second begins with the first's state, or one: the same bits."""
    inputs = make_selective_scan_inputs(2, 100, 40, dtype=dtype)
    whole = selective_scan(**inputs, return_final_state=True)
    first, second = (
        {n: t[:, part] if torch.is_tensor(t) and t.dim() == 3 else t for n, t in inputs.items()}
        for part in (slice(cut), slice(cut, None))
    )
    y, state = selective_scan(**first, return_final_state=True)
    states = selective_scan(**inputs, state_every=cut)[1]
    assert_bitwise(states[:, 0], state)
    rest, state = selective_scan(**second, initial_state=state, return_final_state=True)
    assert_bitwise(torch.cat([y, rest], 1), whole[0])
    assert_bitwise(state, whole[1])


BOUNDS = {
    "ragged": [0, 1, 3, 63, 64, 65, 130, 200],
    "empty ones": [0, 0, 64, 64, 128, 200, 200],
    "one": [0, 200],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
def test_packed_sequences_are_the_sequences(bounds, dtype):
    inputs = make_selective_scan_inputs(1, 200, 40, dtype=dtype)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32)
    initial_state = torch.randn(len(bounds) - 1, 40, 16)
    y, final_state, states = every(inputs, cu_seqlens=cu_seqlens, initial_state=initial_state)
    assert states.shape == (1, 6, 40, 16)
    for s, (begin, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        part = {n: t[:, begin:end] if torch.is_tensor(t) and t.dim() == 3 else t for n, t in inputs.items()}
        alone = selective_scan(**part, initial_state=initial_state[s : s + 1], return_final_state=True)
        assert_bitwise(y[:, begin:end], alone[0])
        assert_bitwise(final_state[s : s + 1], alone[1])
    assert_all_close((y, final_state, states), inputs, cu_seqlens=cu_seqlens, initial_state=initial_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_channels_do_not_change_each_other(dtype):
    """A channel alone, or among others of which one is NaN, on one thread or more: the same bits."""
    inputs = make_selective_scan_inputs(3, 70, 300, dtype=dtype)
    y = selective_scan(**inputs)
    with threads(1):
        assert_bitwise(selective_scan(**inputs), y)
    columns = slice(37, 142)
    part = {n: t[..., columns] if n in ("x", "dt", "z", "D", "dt_bias") else t for n, t in inputs.items()}
    part["A"] = inputs["A"][columns]
    assert_bitwise(selective_scan(**part), y[..., columns])
    inputs["x"][1, 5, 40] = float("nan")
    spoiled = selective_scan(**inputs)
    assert spoiled[1, 5:, 40].isnan().all()
    same = torch.ones_like(y, dtype=torch.bool)
    same[1, 5:, 40] = False
    assert_bitwise(spoiled[same], y[same])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_inner", [16, 45])
def test_strides_and_bystanders(d_inner, dtype):
    """What lies between the inputs' rows is NaN and is not read; outputs that a C caller gives may be views, too."""
    inputs = make_selective_scan_inputs(2, 70, d_inner, dtype=dtype)
    initial_state = torch.randn(2, d_inner, 16)
    results = every(inputs, initial_state=initial_state)
    views = {n: sliced(t) if torch.is_tensor(t) else t for n, t in inputs.items()}
    for actual, each in zip(every(views, initial_state=sliced(initial_state)), results, strict=True):
        assert_bitwise(actual, each)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)], ids=["no sequence", "no token"])
def test_nothing_to_do(shape):
    inputs = make_selective_scan_inputs(*shape, 20)
    initial_state = torch.randn(shape[0], 20, 16)
    y, final_state, states = every(inputs, initial_state=initial_state)
    assert (y.shape, states.shape) == ((*shape, 20), (shape[0], 0, 20, 16))
    assert_bitwise(final_state, initial_state)


def test_opcheck():
    inputs = make_selective_scan_inputs(2, 70, 20)
    outputs = (torch.empty(2, 70, 20), torch.empty(2, 20, 16), torch.empty(2, 7, 20, 16), torch.empty(2, 1, 16, 20))
    arguments = (*inputs.values(), True, None, None, 10, *outputs)
    torch.library.opcheck(torch.ops.llamba.selective_scan.default, arguments)


def test_compiles_without_graph_break():
    inputs = make_selective_scan_inputs(2, 70, 20)
    compiled = torch.compile(lambda inputs: selective_scan(**inputs) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(inputs), selective_scan(**inputs) + 1)
