"""selective_state_update: against the fp64 reference in every shape and mode; what it must leave alone; exact bits."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, sliced, threads
from ssu_cases import check, copied, make_inputs

from llamba_kernels import dropins
from llamba_kernels.capture import Capture
from llamba_kernels.ops import selective_state_update
from python_ref.selective_state_update import selective_state_update_ref

BF16, FP16, NAN = torch.bfloat16, torch.float16, float("nan")
CASES = {
    "base": {},
    "mamba-1": dict(nheads=None, headdim=70, dstate=16),
    "mamba-1 tokens": dict(nheads=None, headdim=33, dstate=16, ntokens=3),
    "mamba-1 bf16": dict(nheads=None, headdim=64, dstate=16, dtype=BF16, group_dtype=torch.float32),
    "tied": dict(tied=True),
    "tied bf16": dict(tied=True, dtype=BF16, headdim=64, dstate=128, ngroups=1),
    "tied tokens": dict(tied=True, ntokens=4),
    "tokens": dict(ntokens=5),
    "one of several tokens": dict(ntokens=1),
    "no gate": dict(gate=False),
    "no D, no bias": dict(bias=False),
    "bf16, fp32 state": dict(dtype=BF16, state_dtype=torch.float32, ntokens=2),
    "fp32, bf16 state": dict(state_dtype=BF16),
    "fp16": dict(dtype=FP16),
    "fp16 state tokens": dict(dtype=BF16, state_dtype=FP16, ntokens=3),
    "bf16 parameters": dict(parameter_dtype=BF16),
    "bf16 tied parameters": dict(parameter_dtype=BF16, tied=True, dtype=BF16),
    "one group": dict(ngroups=1),
    "a group a head": dict(ngroups=4),
    "dstate 1": dict(dstate=1),
    "dstate 17": dict(dstate=17, ntokens=2),
    "dstate 96": dict(dstate=96, dtype=BF16),
    "dstate 128": dict(dstate=128, tied=True),
    "dstate 256": dict(dstate=256, headdim=5),
    "dstate 256 bf16": dict(dstate=256, headdim=5, dtype=BF16),
    "dstate 250": dict(dstate=250, headdim=5),
    "headdim 1": dict(headdim=1),
    "packed": dict(packed=[2, 0, 3, 1]),
    "packed mamba-1": dict(nheads=None, headdim=40, packed=[1, 2]),
}


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change):
    check(make_inputs(**change))


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("ntokens", [None, 3])
def test_slots_with_padding(kind, ntokens):
    """Padding starts at zero and stores nothing; slots that no one names keep their bits."""
    arguments = make_inputs(batch=4, nslots=6, ntokens=ntokens, dtype=BF16)
    arguments["state"][[0, 2, 4]] = NAN
    check(arguments, state_batch_indices=torch.tensor([5, -1, 1, 3], dtype=kind))
    check(arguments, state_batch_indices=torch.tensor([[5], [0], [-7], [3]], dtype=kind), pad_slot_id=0)
    check(arguments, state_batch_indices=torch.tensor([5, 99, 1, -1], dtype=kind), pad_slot_id=99)
    untouched = copied(arguments)
    check(untouched, state_batch_indices=torch.tensor([5, 5, 1, 3], dtype=kind), disable_state_update=True)
    assert_bitwise(untouched["state"], arguments["state"])


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_destinations(kind):
    """One for the last state; or one for each token; sources keep their bits, and may be shared."""
    arguments = make_inputs(batch=3, nslots=12, ntokens=3, state_dtype=FP16)
    arguments["state"][3:] = NAN
    src = torch.tensor([1, 0, 1], dtype=kind)
    check(arguments, state_batch_indices=src, dst_state_batch_indices=torch.tensor([5, -1, 7], dtype=kind))
    each = torch.tensor([[5, 6, 7], [-1, -1, 8], [9, 10, -1]], dtype=kind)
    check(arguments, state_batch_indices=src[:, None], dst_state_batch_indices=each)
    check(arguments, dst_state_batch_indices=each, disable_state_update=True)
    check(arguments, state_batch_indices=torch.tensor([1, -1, 2], dtype=kind), dst_state_batch_indices=each)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("packed", [None, [3, 1, 2]])
def test_accepted_tokens_choose_where_a_sequence_starts(kind, packed):
    arguments = make_inputs(batch=3, nslots=20, ntokens=None if packed else 3, packed=packed)
    arguments["state"][9:] = NAN
    accepted = torch.tensor([3, 0, 1], dtype=kind)
    src = torch.arange(9, dtype=torch.int32).view(3, 3)
    dst = 9 + torch.arange(9, dtype=torch.int64).view(3, 3)
    dst[0, 1] = -1
    check(arguments, state_batch_indices=src, num_accepted_tokens=accepted, dst_state_batch_indices=dst)
    check(arguments, state_batch_indices=src, num_accepted_tokens=accepted)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("nheads", [4, None])
def test_states_after_each_token(dtype, nheads):
    arguments = make_inputs(batch=3, nslots=5, ntokens=3, nheads=nheads, dtype=dtype)
    slots, rows = torch.tensor([4, -1, 2]), torch.tensor([0, 1, 3])
    arguments["state"][[0, 1, 3]] = NAN
    arguments["intermediate_states_buffer"] = torch.full((5, 4, *arguments["state"].shape[1:]), NAN, dtype=dtype)
    for update in (True, False):
        options = dict(state_batch_indices=slots, disable_state_update=not update)
        check(arguments, **options)
        check(arguments, **options, intermediate_state_indices=rows)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("packed", [None, [4, 2, 4]])
def test_trees_start_from_the_buffer(dtype, packed):
    arguments = make_inputs(batch=3, ntokens=None if packed else 4, packed=packed, dtype=dtype, nslots=4)
    arguments["intermediate_states_buffer"] = torch.full((4, 4, *arguments["state"].shape[1:]), NAN, dtype=dtype)
    parents = torch.tensor([[-1, 0, 0, 1], [7, -1, 9, 3], [0, 0, 1, 0]])
    check(arguments, retrieve_parent_token=parents)
    check(arguments, retrieve_parent_token=parents.int(), state_batch_indices=torch.tensor([3, -1, 0]))


@pytest.mark.parametrize("change", [{}, dict(tied=True, dtype=BF16, state_dtype=torch.float32), dict(nheads=None)])
def test_a_window_is_its_tokens_one_by_one(change):
    """Bit for bit with an fp32 state, on any number of threads; beside NaN in another sequence, too."""
    arguments = make_inputs(ntokens=4, **change)
    arguments["x"][0] = NAN
    window, steps = copied(arguments), copied(arguments)
    out = selective_state_update(**window)
    for t in range(4):
        at = {name: steps[name][:, t] for name in ("x", "dt", "B", "C", "z")}
        assert_bitwise(selective_state_update(**(steps | at)), out[:, t])
    assert_bitwise(steps["state"], window["state"])
    alone = copied({n: v[1:2] if n in ("state", "x", "dt", "B", "C", "z") else v for n, v in arguments.items()})
    with threads(1):
        assert_bitwise(selective_state_update(**alone)[0], out[1])
    assert_bitwise(alone["state"][0], window["state"][1])


@pytest.mark.parametrize("dtype", [torch.float32, BF16, FP16])
@pytest.mark.parametrize("dstate", [16, 45])
def test_strides_and_bystanders(dtype, dstate):
    """Any strides but the last of state and A; a transposed x and out; nothing around is read or written."""
    arguments = make_inputs(dtype=dtype, dstate=dstate, ntokens=2)
    plain = copied(arguments)
    expected = selective_state_update(**plain)
    state = Surrounded(arguments["state"], fill=7.0)
    out = Surrounded(torch.zeros_like(arguments["x"]), fill=7.0)
    odd = {name: sliced(arguments[name]) for name in ("dt", "A", "D", "dt_bias")}
    for name in ("x", "z", "B", "C"):
        odd[name] = sliced(arguments[name].transpose(-1, 0).contiguous()).transpose(-1, 0)
    result = selective_state_update(**(arguments | odd | {"state": state.inner, "out": out.inner}))
    assert result is out.inner
    assert_bitwise(out.inner, expected)
    assert_bitwise(state.inner, plain["state"])
    out.assert_surroundings_untouched()
    state.assert_surroundings_untouched()
    for target in ("x", "z"):
        again = copied(arguments)
        again["out"] = again[target] = again[target].clone()
        assert_bitwise(selective_state_update(**again), expected)


def test_tokens_of_no_sequence():
    arguments = make_inputs(packed=[2, 1, 4])
    arguments["cu_seqlens"] = torch.tensor([1, 3, 3, 5])
    out = torch.full(arguments["x"].shape, 7.0)
    selective_state_update(**copied(arguments), out=out)
    assert (out[[0, 5, 6]] == 7.0).all() and not (out[1:5] == 7.0).any()
    assert not selective_state_update(**copied(arguments))[[0, 5, 6]].any()


@pytest.mark.parametrize("change", [dict(batch=0), dict(ntokens=0), dict(packed=[0, 0])])
def test_nothing_to_do(change):
    arguments = make_inputs(**change)
    before = copied(arguments)
    assert not selective_state_update(**arguments).numel()
    assert_bitwise(arguments["state"], before["state"])


def closed_form(state, x, dt, A, B, C):
    """y (T, H, P) of one sequence: state (H, P, N), x and dt (T, H, P), A (H, P, N), B and C (T, H, N)."""
    total = torch.cumsum(dt[..., None] * A, 0)  # of exponents, up to and with each token
    decay = torch.exp(total[:, None] - total[None, :])  # [t, s]
    decay = decay * torch.ones(len(x), len(x), dtype=x.dtype).tril()[:, :, None, None, None]
    y = torch.einsum("tshpn,shp,shn,thn->thp", decay, dt * x, B, C)
    return y + torch.einsum("thpn,hpn,thn->thp", torch.exp(total), state, C)


def test_the_reference_is_the_closed_form():
    arguments = {
        name: value.double() if torch.is_tensor(value) else value
        for name, value in make_inputs(batch=1, ntokens=6, gate=False, bias=False, ngroups=4).items()
    }
    state, x, dt, A, B, C = (arguments[name] for name in ("state", "x", "dt", "A", "B", "C"))
    expected = closed_form(state[0], x[0], torch.nn.functional.softplus(dt[0]), A, B[0], C[0])
    torch.testing.assert_close(selective_state_update_ref(**copied(arguments))[0], expected, rtol=1e-12, atol=1e-12)


def test_the_drop_in_takes_every_peers_arguments():
    arguments = make_inputs(nslots=5)
    slots = torch.tensor([4, 0, 2])
    ours, theirs = copied(arguments), copied(arguments)
    out = selective_state_update(**ours, state_batch_indices=slots, pad_slot_id=0)
    positional = [theirs[name] for name in ("state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias", "dt_softplus")]
    extra = dict(algorithm="simple", backend="flashinfer", philox_rounds=10, cache_steps=1, is_blackwell=True)
    assert_bitwise(dropins.selective_state_update(*positional, slots, null_block_id=0, **extra), out)
    assert_bitwise(theirs["state"], ours["state"])


def test_opcheck():
    arguments = make_inputs(ntokens=2, nslots=5, dtype=BF16)
    buffer = torch.zeros(3, 2, *arguments["state"].shape[1:], dtype=BF16)
    indices = torch.tensor([4, 0, 2]), -1, False, buffer, torch.tensor([2, 0, 1]), None, None, None, None
    out = torch.empty_like(arguments["x"])
    torch.library.opcheck(torch.ops.llamba.selective_state_update.default, (*arguments.values(), *indices, out))


def test_compiles_without_graph_break():
    eager, compiled = make_inputs(), None
    compiled = copied(eager)
    function = torch.compile(
        lambda arguments: selective_state_update(**arguments) + 1, fullgraph=True, backend="aot_eager"
    )
    assert_bitwise(function(compiled), selective_state_update(**eager) + 1)
    assert_bitwise(compiled["state"], eager["state"])


def test_a_capture_repeats_the_call():
    arguments = make_inputs()
    arguments["out"] = torch.empty_like(arguments["x"])
    twice = copied(arguments)
    capture = Capture(lambda: selective_state_update(**arguments), arguments)
    capture.replay()
    for _ in range(2):
        out = selective_state_update(**(twice | {"out": None}))
    assert_bitwise(arguments["out"], out)
    assert_bitwise(arguments["state"], twice["state"])


def test_extreme_values():
    """Steps that forget everything, steps that take in nothing, and gates wide open and shut."""
    arguments = make_inputs(dtype=BF16, state_dtype=torch.float32)
    arguments["dt"][0], arguments["dt"][1] = 100.0, -100.0
    arguments["z"][0], arguments["z"][1] = 200.0, -200.0
    before = arguments["state"].clone()
    out = check(arguments)
    assert not out[1].any()
    after = copied(arguments)
    selective_state_update(**after)
    assert_close_to_ref(after["state"][1], before[1].double(), before[1])


@pytest.mark.device_only
def test_a_device_takes_wrong_indices_for_padding():
    """It cannot refuse them: they start at zero and store nothing."""
    arguments = make_inputs(batch=4, nslots=5, ntokens=2, dtype=BF16)
    wrong, padding = torch.tensor([4, 5, 2**31 - 1, 0]), torch.tensor([4, -1, -1, 0])
    dst = torch.tensor([[5, 1], [2, 2], [3, 3], [3, 99]])
    ours, theirs = copied(arguments), copied(arguments)
    dst_padded = dst.where(dst < 5, -1)
    out = selective_state_update(**ours, state_batch_indices=wrong, dst_state_batch_indices=dst)
    expected = selective_state_update(**theirs, state_batch_indices=padding, dst_state_batch_indices=dst_padded)
    assert_bitwise(out, expected)
    assert_bitwise(ours["state"], theirs["state"])
    packed = make_inputs(packed=[2, 1, 1]) | {"cu_seqlens": torch.tensor([-1, 2, 1, 5])}
    before = copied(packed)
    assert not selective_state_update(**packed).any()  # no sequence is where cu_seqlens says
    assert_bitwise(packed["state"], before["state"])
