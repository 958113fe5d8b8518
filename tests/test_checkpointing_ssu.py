"""checkpointing_ssu: against the fp64 reference; with an fp32 state windows, stores and rings change no bits."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, assert_refused, sliced, threads

from llamba_kernels.capture import Capture
from llamba_kernels.ops import checkpointing_ssu
from llamba_kernels.testing_dropins import Ring, make_checkpointing_ssu_parameters, make_checkpointing_ssu_tokens
from python_ref.checkpointing_ssu import checkpointing_ssu_ref

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BASE = dict(nheads=4, headdim=16, dstate=32, ngroups=2, window=8, tokens=4, dtype=FP32, state_dtype=FP32)
CASES = {  # two sequences at least, of which one stores its state and one does not
    "base": {},
    "bf16": dict(dtype=BF16),
    "fp16, bf16 state": dict(dtype=FP16, state_dtype=BF16),
    "bf16, bf16 state": dict(dtype=BF16, state_dtype=BF16),
    "fp16 state": dict(state_dtype=FP16),
    "headdim 80, dstate 96": dict(headdim=80, dstate=96, nheads=2, ngroups=1),
    "headdim 5, dstate 16": dict(headdim=5, dstate=16),
    "headdim 33, dstate 48": dict(headdim=33, dstate=48, nheads=2),
    "dstate 128": dict(dstate=128, nheads=2, dtype=BF16),
    "dstate 256": dict(dstate=256, nheads=1, ngroups=1),
    "one group of each head": dict(ngroups=4),
    "one token": dict(tokens=1, window=1),
    "32 tokens": dict(tokens=32, window=40, nheads=1, ngroups=1),
    "window 0": dict(tokens=3, window=0),
    "no gate, D, bias": dict(gate=False, parameters=()),
    "dt as it is": dict(dt_softplus=False),
    "parameters of other dtypes": dict(dtype=BF16, parameter_dtype=FP32),
    "padding": dict(slots=[5, -1, 0]),
    "padding of slot 0": dict(slots=[5, 0, 2], pad_slot_id=0, index_dtype=torch.int64),
    "packed": dict(lengths=[3, 0, 4, 1], slots=[5, 1, 0, 3]),
    "packed with padding": dict(lengths=[3, 2, 4], slots=[5, -1, 0], dtype=BF16),
}


def make_call(
    slots=(1, 0),
    lengths=None,
    gate=True,
    parameters=("D", "dt_bias"),
    parameter_dtype=None,
    dt_softplus=True,
    pad_slot_id=-1,
    index_dtype=torch.int32,
    **change,
):
    """A ring with some previous tokens in each slot, and the call's keyword arguments."""
    size = BASE | change
    ring = Ring(max(slots) + 1, **size)
    rows, heads = ring.window + ring.tokens, (size["nheads"], size["headdim"], size["dstate"])
    for slot in range(max(slots) + 1):
        previous = (0, ring.window)[slot % 2] if slot < 2 else int(torch.randint(0, ring.window + 1, ()))
        live = (int(ring.ring_start[slot]) + torch.arange(previous)) % rows
        for cache in (ring.x_cache, ring.B_cache, ring.dt_cache):
            values = torch.randn(cache[slot].shape).to(cache.dtype)
            cache[slot][:, live] = (values.abs() if cache is ring.dt_cache else values)[:, live]
        ring.previous[slot] = previous
    given = make_checkpointing_ssu_parameters(*heads, parameter_dtype or size["dtype"])
    batch, tokens = (len(slots), size["tokens"]) if lengths is None else (1, sum(lengths))
    call = make_checkpointing_ssu_tokens(batch, tokens, *heads, size["ngroups"], gate, size["dtype"])
    call |= {name: given[name] for name in ("A", *parameters)} | dict(dt_softplus=dt_softplus, pad_slot_id=pad_slot_id)
    call |= dict(state_batch_indices=torch.tensor(slots, dtype=index_dtype))
    if lengths is not None:
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        call |= dict(cu_seqlens=starts, max_seqlen=size["tokens"])
    return ring, call


def run(ring, call, out=None):
    return checkpointing_ssu(*ring.arguments(), call["x"], **{k: v for k, v in call.items() if k != "x"}, out=out)


def reference(ring, call, compute_dtype=torch.float64):
    return checkpointing_ssu_ref(*ring.arguments(), **call, compute_dtype=compute_dtype)


def copied(ring):
    twin = object.__new__(Ring)
    vars(twin).update({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in vars(ring).items()})
    return twin


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_state_and_rings_against_fp64_reference(change):
    ring, call = make_call(**change)
    expected_ring, torch_ring = copied(ring), copied(ring)
    before = ring.state.clone()
    out = run(ring, call)
    expected, torch_result = reference(expected_ring, call), reference(torch_ring, call, FP32)
    assert_close_to_ref(out, expected, torch_result.to(out.dtype))
    assert_bitwise(ring.x_cache, expected_ring.x_cache)
    assert_bitwise(ring.B_cache, expected_ring.B_cache)
    torch.testing.assert_close(ring.dt_cache, expected_ring.dt_cache, rtol=1e-6, atol=1e-7, equal_nan=True)
    for slot in range(len(before)):
        if torch.equal(expected_ring.state[slot], before[slot]):
            assert_bitwise(ring.state[slot], before[slot])
        else:
            assert_close_to_ref(ring.state[slot], expected_ring.state[slot], torch_ring.state[slot])


def test_reference_against_the_closed_form():
    """Steps of a walk with random acceptance, against one masked matrix over all that was accepted, in float64."""
    torch.manual_seed(1)
    nheads, headdim, dstate, ngroups, length = 2, 3, 5, 1, 30
    parameters = make_checkpointing_ssu_parameters(nheads, headdim, dstate, torch.float64)
    whole = make_checkpointing_ssu_tokens(1, length, nheads, headdim, dstate, ngroups, dtype=torch.float64)
    ring = Ring(1, nheads, headdim, dstate, ngroups, 6, 4, dtype=torch.float64, state_dtype=torch.float64)
    ring.dt_cache, start = ring.dt_cache.double(), ring.state[0].clone()
    position, out = 0, torch.zeros(length, nheads, headdim, dtype=torch.float64)
    while position < length:
        count = min(4, length - position)
        window = {name: value[:, position : position + count] for name, value in whole.items()}
        starts = torch.tensor([0, count])
        y = checkpointing_ssu_ref(
            *ring.arguments(), **window, **parameters, dt_softplus=True, cu_seqlens=starts, max_seqlen=4
        )
        accepted = int(torch.randint(1, count + 1, ()))
        out[position : position + accepted] = y[0, :accepted]
        ring.commit(0, count, accepted)
        position += accepted
    x, B, C, z = (whole[name][0] for name in "xBCz")
    step = torch.nn.functional.softplus(whole["dt"][0, ..., 0] + parameters["dt_bias"][:, 0])
    log_decay = (step * parameters["A"][:, 0, 0]).cumsum(0)
    scores = torch.einsum("tgn,sgn->ts", C, B)[..., None] * (log_decay[:, None] - log_decay[None]).exp()
    scores = scores.where(torch.ones(length, length, dtype=torch.bool).tril()[..., None], 0)
    y = torch.einsum("tsh,sh,shp->thp", scores, step, x) + parameters["D"] * x
    y += torch.einsum("th,hpn,tgn->thp", log_decay.exp(), start, C)
    torch.testing.assert_close(out, y * torch.nn.functional.silu(z))


def poison(ring):
    """NaN in every row that the cursors do not name."""
    rows = ring.x_cache.shape[2]
    for slot in range(len(ring.state)):
        live = (int(ring.ring_start[slot]) + torch.arange(int(ring.previous[slot]))) % rows
        stale = [row for row in range(rows) if row not in live]
        for cache in (ring.x_cache, ring.B_cache, ring.dt_cache):
            cache[slot][:, stale] = torch.nan


@pytest.mark.parametrize(
    "window, tokens, packed, dtype",
    [(8, 4, False, FP32), (16, 6, True, BF16), (5, 5, True, FP32), (20, 20, True, FP16)],
)
def test_a_walk_of_random_acceptance_is_plain_decoding(window, tokens, packed, dtype):
    """48 steps of three sequences in a pool of five, stale rows NaN; each token's bits are those of decoding alone."""
    size = dict(nheads=2, headdim=9, dstate=32, ngroups=1)
    heads = (2, 9, 32)
    ring = Ring(5, **size, window=window, tokens=tokens, dtype=dtype, state_dtype=FP32)
    plain = Ring(5, **size, window=1, tokens=1, dtype=dtype, state_dtype=FP32)
    plain.state, before = ring.state.clone(), ring.state.clone()
    parameters = make_checkpointing_ssu_parameters(*heads, dtype) | dict(dt_softplus=True)
    slots, written, kept = [3, 0, 4], 0, 0
    for _ in range(48):
        lengths = torch.randint(1, tokens + 1, (3,)).tolist() if packed else [tokens] * 3
        given = make_checkpointing_ssu_tokens(3, tokens, *heads, 1, dtype=dtype)
        call = given | parameters | dict(state_batch_indices=torch.tensor(slots))
        if packed:
            for name in given:
                call[name] = torch.cat([row[:count] for row, count in zip(given[name], lengths, strict=True)])[None]
            call |= dict(cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(), max_seqlen=tokens)
            call["dt"] = call["dt"][..., :1].expand(call["x"].shape)
        poison(ring)
        out = run(ring, call)
        rows = [out[0, sum(lengths[:i]) :][: lengths[i]] if packed else out[i] for i in range(3)]
        for i, slot in enumerate(slots):
            accepted = int(torch.randint(0, lengths[i] + 1, ()))
            for t in range(accepted):
                one = {name: value[i : i + 1, t : t + 1] for name, value in given.items()}
                indices = torch.tensor([slot], dtype=torch.int32)
                poison(plain)
                assert_bitwise(rows[i][t], run(plain, one | parameters | dict(state_batch_indices=indices))[0, 0])
                plain.commit(slot, 1, 1)
            stores = int(ring.previous[slot]) + lengths[i] > window
            written, kept = written + stores, kept + (not stores)
            ring.commit(slot, lengths[i], accepted)
    assert written > 10 and (kept > 10 or window == tokens)
    assert_bitwise(ring.state[[1, 2]], before[[1, 2]])


@pytest.mark.parametrize("state_dtype", [BF16, FP16])
def test_a_window_goes_on_from_the_stored_state(state_dtype):
    """Rounding included: a call that stores is the store, then a call without previous tokens."""
    ring, call = make_call(state_dtype=state_dtype, slots=(1,))
    out = run(ring, call)
    later = copied(ring)
    later.previous.zero_()
    assert_bitwise(run(later, call), out)
    assert_bitwise(later.state, ring.state)


@pytest.mark.parametrize("change", [{}, dict(dtype=BF16, state_dtype=BF16)], ids=str)
def test_strides_and_bystanders(change):
    ring, call = make_call(slots=(4, 1, 2), headdim=20, **change)
    ring.state[[0, 3]] = torch.nan
    expected = copied(ring)
    out = run(expected, call)
    traps = {name: Surrounded(getattr(ring, name)) for name in ("state", "x_cache", "B_cache", "dt_cache")}
    for name, trap in traps.items():
        setattr(ring, name, trap.inner)
    given = call | {name: sliced(call[name]) for name in ("x", "B", "C", "z")}
    given["dt"] = sliced(call["dt"][..., :1]).expand(call["dt"].shape)
    given["state_batch_indices"] = call["state_batch_indices"].repeat_interleave(2)[::2]
    target = Surrounded(torch.zeros_like(call["x"]), fill=7.0)
    assert run(ring, given, out=target.inner) is target.inner
    assert_bitwise(target.inner, out)
    for name, trap in traps.items():
        trap.assert_surroundings_untouched()
        assert_bitwise(trap.inner.contiguous(), getattr(expected, name))
    target.assert_surroundings_untouched()


def test_a_sequence_has_the_same_bits_beside_any_others():
    ring, call = make_call(slots=list(range(12)), nheads=8, dstate=64, dtype=BF16)
    whole = copied(ring)
    out = run(whole, call)
    for count in (1, 2, 3):
        rows = torch.randperm(12)[: 4 * count]
        few, some = copied(ring), dict(call)
        for name in ("x", "dt", "B", "C", "z", "state_batch_indices"):
            some[name] = call[name][rows]
        some["dt"] = some["dt"][..., :1].expand(some["x"].shape)
        with threads(count):
            assert_bitwise(run(few, some), out[rows])
        assert_bitwise(few.state[rows], whole.state[rows])


def test_flashinfers_own_arguments_are_taken():
    ring, call = make_call()
    again = copied(ring)
    scratch = dict(cb_scaled=torch.empty(1), cumAdt_vec=torch.empty(1), cb_old=torch.empty(1), algorithm="two-kernel")
    tuning = dict(philox_rounds=5, d_split=2, enable_pdl=True, precompute_heads_per_cta=2)
    assert_bitwise(run(again, call | scratch | tuning), run(ring, call))
    for name, kind, sentence in (
        ("state_scale", torch.ones(1), "must be None (8-bit states are not run); got Tensor"),
        ("rand_seed", torch.ones(1), "must be None (stochastic rounding is not run); got Tensor"),
        ("algorithm", "fast", "must be auto, monolith or two-kernel; got 'fast'"),
        ("max_seqlen", 4, "must be given exactly if cu_seqlens is; got none of these"),
    ):
        assert_refused(ValueError, f"checkpointing_ssu: {name} {sentence}", run, ring, call | {name: kind})


def test_opcheck_compile_and_capture():
    ring, call = make_call()
    dt, A, dt_bias = call["dt"][..., 0], call["A"][:, 0, 0], call["dt_bias"][:, 0]
    args = (*ring.arguments(), call["x"], dt, A, *(call[name] for name in ("B", "C", "D", "z")), dt_bias, True)
    args += (call["state_batch_indices"], -1, None, 0, torch.empty_like(call["x"]))
    torch.library.opcheck(torch.ops.llamba.checkpointing_ssu.default, args)
    compiled, twin = copied(ring), copied(ring)
    fast = torch.compile(lambda: run(compiled, call) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(fast(), run(twin, call) + 1)
    assert_bitwise(compiled.state, twin.state)
    out = torch.empty_like(call["x"])
    capture = Capture(lambda: run(ring, call, out), ring)
    expected = out.clone()
    out.zero_()
    capture.replay()
    twin.previous.copy_(ring.previous)
    assert_bitwise(out[1], expected[1])  # slot 0 has no previous tokens: again the same
