"""selective_scan's gradients against autograd through the reference in fp64; what does not change their bits."""

import pytest
import torch
from helpers import assert_bitwise, assert_close_to_ref, assert_refused, sliced, threads
from torch.utils.checkpoint import checkpoint

from llamba_kernels.ops import selective_scan
from llamba_kernels.testing_scan import make_selective_scan_inputs
from python_ref.selective_scan import selective_scan_ref

BASE = dict(batch=2, length=70, d_inner=40)
PACKED = [0, 1, 1, 40, 64, 65, 100]
CASES = {
    "base": {},
    "bf16": dict(dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "no gate": dict(gate=False),
    "bf16 no D, no dt_bias": dict(bias=False, dtype=torch.bfloat16),
    "1 token": dict(length=1),
    "64 tokens": dict(length=64),
    "129 tokens": dict(length=129),
    "dstate 1": dict(dstate=1),
    "dstate 17": dict(dstate=17),
    "bf16 dstate 32": dict(dstate=32, dtype=torch.bfloat16),
    "1 channel": dict(d_inner=1),
    "more groups than one": dict(batch=1, d_inner=1200, length=20),
    "heads as in the attention-initialised block": dict(d_inner=128, B_heads=2, C_heads=8),
    "bf16 heads": dict(d_inner=96, B_heads=6, C_heads=2, dtype=torch.bfloat16),
    "heads that share no block": dict(d_inner=60, B_heads=4, C_heads=6),
    "packed": dict(batch=1, length=100, cu_seqlens=PACKED),
    "bf16 packed heads": dict(batch=1, length=100, B_heads=2, C_heads=5, cu_seqlens=PACKED, dtype=torch.bfloat16),
    "packed, all empty": dict(batch=1, length=0, cu_seqlens=[0, 0, 0]),
}


def leaves(inputs, dtype=None):
    """The inputs, wanting gradients."""
    return {
        name: value.detach().to(dtype or value.dtype).requires_grad_()
        if torch.is_tensor(value) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }


def gradients(function, inputs, outer):
    """Of sum(results * outer), by the inputs' names; a result whose outer is None takes no part."""
    pairs = zip(function(**inputs), outer, strict=True)
    used = [(result, each.to(result.dtype)) for result, each in pairs if each is not None and result.requires_grad]
    wanted = {name: value for name, value in inputs.items() if torch.is_tensor(value) and value.requires_grad}
    values = torch.autograd.grad(
        [result for result, _ in used],
        list(wanted.values()),
        [each for _, each in used],
        materialize_grads=True,  # z and D have no part in the states
    )
    return dict(zip(wanted, values, strict=True))


def every(**inputs):
    return selective_scan(**inputs, state_every=13, return_final_state=True)


def make_inputs(cu_seqlens=None, **change):
    """Inputs with an initial state, and what the gradients of all three results are."""
    inputs = make_selective_scan_inputs(**(BASE | change))
    batch, length = inputs["x"].shape[:2]
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    inputs["initial_state"] = torch.randn(sequences, *inputs["A"].shape)
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    dtype, shape = inputs["x"].dtype, inputs["A"].shape
    outer = torch.randn(inputs["x"].shape).to(dtype), torch.randn(sequences, *shape)
    return inputs, (*outer, torch.randn(batch, length // 13, *shape))


def assert_gradients_close(inputs, outer, **options):
    actual = gradients(lambda **each: every(**each, **options), leaves(inputs), outer)

    def reference(dtype):
        def results(**each):
            y, *states = selective_scan_ref(**each, **options, state_every=13, compute_dtype=dtype)
            return y if dtype == torch.float64 else y.to(inputs["x"].dtype), *states

        return gradients(results, leaves(inputs, dtype if dtype == torch.float64 else None), outer)

    expected, formula = reference(torch.float64), reference(torch.float32)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.dtype == inputs[name].dtype
        if value.numel():
            assert_close_to_ref(value, expected[name], formula[name])


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_gradients_against_fp64_reference(change):
    assert_gradients_close(*make_inputs(**change))


def test_dt_as_it_is():
    inputs, outer = make_inputs()
    inputs["dt"], inputs["dt_bias"] = torch.rand(2, 70, 40) / 10, torch.rand(40) / 10
    assert_gradients_close(inputs, outer, dt_softplus=False)


@pytest.mark.parametrize("used", [0, 1, 2], ids=["y", "final_state", "states"])
def test_one_result_alone(used):
    inputs, outer = make_inputs()
    assert_gradients_close(inputs, [each if i == used else None for i, each in enumerate(outer)])


def test_threads_and_strides_do_not_change_bits():
    inputs, outer = make_inputs(d_inner=300, B_heads=2, C_heads=3)
    expected = gradients(every, leaves(inputs), outer)
    with threads(1):
        alone = gradients(every, leaves(inputs), outer)
    views = {name: sliced(value) if torch.is_tensor(value) else value for name, value in inputs.items()}
    strided = gradients(every, leaves(views), [sliced(each) for each in outer])
    for name, value in expected.items():
        assert_bitwise(alone[name], value)
        assert_bitwise(strided[name].contiguous(), value)


def test_only_what_is_wanted():
    inputs, outer = make_inputs()
    expected = gradients(every, leaves(inputs), outer)
    for name in ("x", "A", "z", "initial_state"):
        (only,) = gradients(every, inputs | {name: inputs[name].detach().requires_grad_()}, outer).values()
        assert_bitwise(only, expected[name])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)], ids=["no sequence", "no token"])
def test_nothing_to_do(shape):
    inputs, outer = make_inputs(batch=shape[0], length=shape[1])
    result = gradients(every, leaves(inputs), outer)
    assert not any(value.any() for name, value in result.items() if name != "initial_state")
    assert_bitwise(result["initial_state"], outer[1])


def test_nothing_is_kept_without_need():
    """Under no_grad, or with no input that wants a gradient, there is no graph; results are the same either way."""
    inputs, _ = make_inputs()
    results = every(**inputs)
    assert all(result.grad_fn is None for result in results)
    with torch.no_grad():
        assert all(result.grad_fn is None for result in every(**leaves(inputs)))
    for kept, result in zip(every(**leaves(inputs)), results, strict=True):
        assert kept.grad_fn is not None
        assert_bitwise(kept.detach(), result)


def test_a_second_differentiation_is_refused():
    inputs, _ = make_inputs()
    wanted = leaves(inputs)
    (gradient,) = torch.autograd.grad(selective_scan(**wanted).sum(), wanted["x"], create_graph=True)
    sentence = "gradients must be differentiated once, because the backward has no backward; got twice"
    assert_refused(ValueError, f"selective_scan: {sentence}", gradient.sum().backward)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant):
    inputs, outer = make_inputs()
    expected = gradients(every, leaves(inputs), outer)
    wanted = leaves(inputs)
    names = list(wanted)
    results = checkpoint(
        lambda *each: every(**dict(zip(names, each, strict=True))), *wanted.values(), use_reentrant=use_reentrant
    )
    torch.autograd.backward(results, outer)
    for name, value in expected.items():
        assert_bitwise(wanted[name].grad, value)


def test_training_lowers_a_loss():
    """A layer that learns another one's output."""
    inputs = make_selective_scan_inputs(4, 32, 16)
    target = selective_scan(**make_selective_scan_inputs(4, 32, 16) | {n: inputs[n] for n in ("x", "z")})
    weights = {n: inputs[n].clone().requires_grad_() for n in ("dt", "A", "B", "C", "D", "dt_bias")}
    optimizer = torch.optim.Adam(weights.values(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (selective_scan(**inputs | weights) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20


def test_opcheck():
    inputs, outer = make_inputs()
    initial_state = inputs.pop("initial_state")
    tensors = [value for value in inputs.values() if torch.is_tensor(value)]
    written = [torch.empty_like(value).contiguous() for value in (*tensors, initial_state)]
    arguments = (*inputs.values(), True, initial_state, None, 13, torch.zeros(2, 1, 16, 40), *outer, *written)
    torch.library.opcheck(torch.ops.llamba.selective_scan_backward.default, arguments)


def test_training_compiles_without_graph_break():
    inputs, _ = make_inputs()
    wanted, compiled_wanted = leaves(inputs), leaves(inputs)
    selective_scan(**wanted).sin().sum().backward()
    compiled = torch.compile(lambda inputs: selective_scan(**inputs).sin().sum(), fullgraph=True, backend="aot_eager")
    compiled(compiled_wanted).backward()
    for name, value in wanted.items():
        if torch.is_tensor(value):
            assert_bitwise(compiled_wanted[name].grad, value.grad)
