"""The grids on which the peers test selective_state_update, at their tolerances: a sample here, all of them as slow.

Written anew from mamba_ssm's tests/ops/triton/test_selective_state_update.py, vLLM's tests/kernels/mamba/
test_mamba_ssm.py and FlashInfer's tests/mamba/test_selective_state_update_{mtp,stp,varlen}.py. The reference is ours,
in fp64 and rounded once, instead of theirs, which rounds on the way.
"""

import itertools
import random

import pytest
import torch
from helpers import assert_bitwise
from ssu_cases import WRITTEN, copied, make_inputs

from llamba_kernels.dropins import selective_state_update
from python_ref.selective_state_update import selective_state_update_ref

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
MAMBA_1 = dict(dim=(2048, 2064, 4096), dstate=(16, 32, 64), gate=(False, True), dtype=(FP32, FP16, BF16))
MAMBA_2 = dict(
    dim=(2048, 4096),
    dstate=(16, 32, 64),
    gate=(False, True),
    dtype=(FP32, FP16, BF16),
    tied=(False, True),
    ngroups=(1, 2, 4),
)
VLLM = dict(dim=(2048, 2064, 4096), dstate=(16, 64), gate=(False, True), dtype=(FP32, BF16))


@pytest.fixture(autouse=True)
def not_under_the_executor(request):
    if request.config.getoption("--device") == "simt":
        pytest.skip("the executor takes minutes for sizes of models; the other tests are its")


def both(grid):
    """Parametrization: a few rows in which every value of every factor occurs; all others as slow."""
    rows = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    few = random.Random(0).sample(rows, 3)
    for name, values in grid.items():
        few += [few[0] | {name: value} for value in values if all(row[name] != value for row in few)]
    slow = [pytest.param(row, marks=pytest.mark.slow) for row in rows if row not in few]
    return pytest.mark.parametrize("row", [*few, *slow], ids=lambda row: "-".join(map(str, row.values())))


def inputs_of(dim, dstate, gate, dtype, tied=False, ngroups=None, **change):
    """ngroups: of a state with heads of 64; None: without heads. B, C and the parameters are fp32."""
    heads = dict(nheads=None, headdim=dim) if ngroups is None else dict(nheads=dim // 64, headdim=64, ngroups=ngroups)
    sizes = dict(dstate=dstate, gate=gate, dtype=dtype, tied=tied, group_dtype=FP32)
    return make_inputs(**heads, **sizes, **change)


def spread(arguments, slots, nslots):
    """The states in these slots of a larger state that holds NaN."""
    state = arguments["state"]
    whole = torch.full((nslots, *state.shape[1:]), float("nan"), dtype=state.dtype)
    whole[slots.flatten().long()] = state
    return arguments | {"state": whole}


def compare(arguments, tolerances, rows=slice(None), states=slice(None), **options):
    """out[rows] and state[states] within (rtol, atol), as torch.allclose has it; other states keep their bits."""
    ours, theirs = copied(arguments), copied(arguments)
    out = selective_state_update(**ours, **options)
    options = {"pad_slot_id" if name == "null_block_id" else name: value for name, value in options.items()}
    expected = selective_state_update_ref(**theirs, **options)
    rtol, atol = tolerances
    assert torch.allclose(out[rows], expected[rows].to(out.dtype), rtol=rtol, atol=atol)
    for name in WRITTEN:
        if arguments.get(name) is not None:
            which = states if name == "state" else slice(None)
            assert torch.allclose(ours[name][which], theirs[name][which], rtol=rtol, atol=atol)
    for slot in set(range(len(arguments["state"]))) - set(states) if states != slice(None) else ():
        assert_bitwise(ours["state"][slot], arguments["state"][slot])


def tolerances(dtype, fp16, bf16):
    return {FP32: (3e-4, 1e-3), FP16: fp16, BF16: bf16}[dtype]


# ---- mamba_ssm ----


@both(MAMBA_1)
def test_mamba_1(row):
    compare(inputs_of(**row, batch=2), tolerances(row["dtype"], (5e-3, 1e-2), (1e-2, 5e-2)))


@both(MAMBA_2)
def test_mamba_2(row):
    compare(inputs_of(**row, batch=2), tolerances(row["dtype"], (5e-3, 3e-2), (1e-2, 1e-1)))


@both(MAMBA_1)
def test_mamba_1_with_slots(row):
    slots = torch.randperm(160)[:16].int()
    limits = tolerances(row["dtype"], (5e-3, 1e-2), (6e-2, 6e-2))
    arguments = spread(inputs_of(**row, batch=16), slots, 160)
    compare(arguments, limits, states=slots.tolist(), state_batch_indices=slots)


@both(MAMBA_2)
def test_mamba_2_with_slots(row):
    slots = torch.randperm(160)[:16].int()
    limits = tolerances(row["dtype"], (5e-3, 3e-2), (1e-1, 1e-1))
    arguments = spread(inputs_of(**row, batch=16), slots, 160)
    compare(arguments, limits, states=slots.tolist(), state_batch_indices=slots)


# ---- vLLM ----


@both(VLLM | dict(padding=(0, 5)))
def test_vllm_slots_with_null_blocks(row):
    padding = row.pop("padding")
    slots = torch.cat([1 + torch.randperm(29)[:3], torch.zeros(padding, dtype=torch.int64)]).int()
    arguments = inputs_of(**row, batch=3 + padding, nslots=3)
    arguments = spread(arguments, slots[:3], 30)
    limits = tolerances(row["dtype"], None, (1e-1, 1e-1))
    states = slots[:3].tolist()
    compare(arguments, limits, rows=slice(3), states=states, state_batch_indices=slots, null_block_id=0)


@both(VLLM | dict(longest=(1, 2, 4)))
def test_vllm_packed(row):
    lengths = torch.randint(1, row.pop("longest") + 1, (4,)).tolist()
    compare(inputs_of(**row, packed=lengths), tolerances(row["dtype"], None, (5e-2, 1.5e-1)))


@both(VLLM | dict(longest=(2, 4)))
def test_vllm_accepted_tokens(row):
    longest = row.pop("longest")
    lengths = torch.randint(1, longest + 1, (4,)).tolist()
    accepted = torch.randint(0, longest, (4,))
    accepted[:2] = torch.tensor([0, longest])
    src, dst = torch.zeros(2, 4, longest, dtype=torch.int32)
    starts, ends = 1 + torch.randperm(14)[:4].int(), 15
    for i, length in enumerate(lengths):
        src[i, max(int(accepted[i]) - 1, 0)] = starts[i]
        dst[i, :length] = torch.arange(ends, ends + length)
        ends += length
    compare(
        inputs_of(**row, packed=lengths, nslots=50),
        tolerances(row["dtype"], None, (5e-2, 1.5e-1)),
        states=list(range(15, ends)),
        state_batch_indices=src,
        dst_state_batch_indices=dst,
        num_accepted_tokens=accepted,
        null_block_id=0,
    )


# ---- FlashInfer ----

FLASHINFER = dict(batch=64, nheads=64, headdim=64, dstate=128, ngroups=8, ntokens=4, dtype=BF16, state_dtype=BF16)
ROWS = {
    "base": {},
    "batch 1": dict(batch=1),
    "batch 4": dict(batch=4),
    "8 heads": dict(nheads=8),
    "headdim 128": dict(headdim=128),
    "dstate 64": dict(dstate=64),
    "dstate 96": dict(dstate=96),
    "1 token": dict(ntokens=1),
    "8 tokens": dict(ntokens=8),
    "fp32 state": dict(state_dtype=FP32),
    "fp16 state": dict(state_dtype=FP16),
    "gate": dict(gate=True),
}
MODES = {"slots": {}, "padding": {}, "no update": dict(disable_state_update=True), "buffer": {}, "no slots": {}}
CLOSE = (1e-2, 1e-3)
SMALL = dict(batch=4, nheads=8)  # of the default run


def flashinfer_inputs(**change):
    return make_inputs(**(FLASHINFER | dict(gate=False, tied=True, dt_dtype=FP32) | change))


@pytest.mark.parametrize("sizes", [SMALL, pytest.param({}, marks=pytest.mark.slow)], ids=["small", "whole"])
@pytest.mark.parametrize("change", ROWS.values(), ids=ROWS)
def test_flashinfer_windows(change, sizes):
    arguments = flashinfer_inputs(**(sizes | change))
    compare(arguments, CLOSE)


@pytest.mark.parametrize("sizes", [SMALL, pytest.param({}, marks=pytest.mark.slow)], ids=["small", "whole"])
@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("mode", MODES)
def test_flashinfer_modes(mode, kind, sizes):
    batch = (FLASHINFER | sizes)["batch"]
    arguments, options = flashinfer_inputs(**sizes, nslots=2 * batch), dict(MODES[mode])
    whole = torch.zeros(2 * batch, 2 * arguments["state"][0].numel(), dtype=BF16)  # slots lie apart
    inner = whole[:, : arguments["state"][0].numel()].unflatten(1, arguments["state"].shape[1:])
    arguments["state"] = inner.copy_(arguments["state"])
    if mode != "no slots":
        options["state_batch_indices"] = torch.randperm(2 * batch)[:batch].to(kind)
    if mode == "padding":
        options["state_batch_indices"][torch.randperm(batch)[: max(1, batch // 4)]] = 999
        options["pad_slot_id"] = 999
    if mode == "buffer":
        arguments["intermediate_states_buffer"] = torch.zeros(batch, 4, *arguments["state"].shape[1:], dtype=BF16)
        options["intermediate_state_indices"] = torch.randperm(batch).to(kind)
    compare(arguments, CLOSE, **options)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("batch", [1, 4, pytest.param(32, marks=pytest.mark.slow)])
def test_flashinfer_destinations(batch, columns):
    slots = torch.randperm(64).int()
    src, dst = (part[:, None] if columns else part for part in (slots[:batch], slots[batch : 2 * batch]))
    arguments = spread(flashinfer_inputs(batch=batch, ntokens=None, nheads=16), src, 64)
    compare(
        arguments,
        CLOSE,
        states=slots[batch : 2 * batch].tolist(),
        state_batch_indices=src,
        dst_state_batch_indices=dst,
    )


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "sequences", [4, pytest.param(8, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
def test_flashinfer_accepted_tokens(sequences, kind):
    src, dst = torch.randperm(8 * sequences).int().view(2, sequences, 4)
    arguments = flashinfer_inputs(packed=[4] * sequences, nslots=4 * sequences, nheads=8)
    arguments = spread(arguments, src, 8 * sequences)
    accepted = torch.randint(1, 5, (sequences,)).to(kind)
    options = dict(state_batch_indices=src, dst_state_batch_indices=dst, num_accepted_tokens=accepted)
    compare(arguments, CLOSE, states=dst.flatten().tolist(), **options)
