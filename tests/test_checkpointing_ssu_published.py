"""FlashInfer's tests of checkpointing_ssu (its tests/mamba/test_checkpointing_ssu.py), rows without 8-bit states and
stochastic rounding, written anew, at its tolerances; and windows that its kernels reject.
"""

import itertools

import pytest
import torch
from helpers import assert_bitwise

from llamba_kernels.dropins import checkpointing_ssu
from llamba_kernels.testing_dropins import Ring, make_checkpointing_ssu_parameters, make_checkpointing_ssu_tokens
from python_ref.checkpointing_ssu import checkpointing_ssu_ref

pytestmark = pytest.mark.cpu_only  # whole layers: far too much for the executor
LAYERS = ((16, 64, 128, 1), (32, 64, 128, 2))  # nheads, headdim, dstate, ngroups of one model on 8 and on 4 devices
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WINDOWS = ((6, 6), (10, 10), (16, 16), (6, 8), (4, 8), (6, 16), (10, 16), (27, 27), (32, 32))  # tokens, W
GRID = list(itertools.product(range(2), range(3), range(len(WINDOWS)), (False, True), (False, True)))
SLOTS = (1, 3)


def make_ring(layer, state_dtype, tokens, window, previous):
    """So many previous tokens in slots 1 and 3; it starts anywhere, and what is not named is NaN."""
    nheads, headdim, dstate, ngroups = layer
    ring = Ring(4, *layer, window, tokens, dtype=torch.bfloat16, state_dtype=state_dtype)
    for slot, count in zip(SLOTS, previous, strict=True):
        rows = (int(ring.ring_start[slot]) + torch.arange(count)) % (window + tokens)
        ring.x_cache[slot][:, rows] = torch.randn(nheads, count, headdim).bfloat16()
        ring.B_cache[slot][:, rows] = torch.randn(ngroups, count, dstate).bfloat16()
        ring.dt_cache[slot][:, rows] = torch.nn.functional.softplus(torch.randn(nheads, count))
        ring.previous[slot] = count
    return ring


def check(layer, state_dtype, window, paged, packed, previous, repeats=1):
    """Two sequences; the first may store its state and the second not, as `previous` has it."""
    torch.manual_seed(42 + sum(previous))
    layer, state_dtype, (tokens, most) = LAYERS[layer], DTYPES[state_dtype], WINDOWS[window]
    lengths = [tokens, tokens // 2] if packed else [tokens, tokens]
    ring = make_ring(layer, state_dtype, tokens, most, previous)
    arguments = [each if paged else each[list(SLOTS)] for each in ring.arguments()]
    shape = (1, sum(lengths)) if packed else (2, tokens)
    call = make_checkpointing_ssu_tokens(*shape, *layer, gate=False, dtype=torch.bfloat16) | dict(dt_softplus=True)
    call |= make_checkpointing_ssu_parameters(*layer[:3], torch.bfloat16)
    if packed:
        call |= dict(cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(), max_seqlen=tokens)
    if paged:
        call["state_batch_indices"] = torch.tensor(SLOTS, dtype=torch.int32)
    expected = [each.clone() for each in arguments]
    copies = [[each.clone() for each in arguments] for _ in range(repeats)]
    before = arguments[0].clone()
    reference = checkpointing_ssu_ref(*expected, **call, compute_dtype=torch.float32)
    for copy in copies:
        out = checkpointing_ssu(*copy, **call, out=torch.empty_like(call["x"]))
        torch.testing.assert_close(out.float(), reference, rtol=2e-2, atol=0.5)
        torch.testing.assert_close(copy[0].float(), expected[0].float(), rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(copy[3], expected[3], rtol=1e-6, atol=1e-7, equal_nan=True)
        for ours, theirs in zip(copy[1:3], expected[1:3], strict=True):
            assert_bitwise(ours, theirs)
        for ours, first in zip(copy, copies[0], strict=True):
            assert_bitwise(ours, first)
    for i, (count, length) in enumerate(zip(previous, lengths, strict=True)):
        slot = SLOTS[i] if paged else i
        assert torch.equal(copies[0][0][slot], before[slot]) == (count == 0 or count + length <= most)
    if paged:
        assert_bitwise(copies[0][0][[0, 2]], before[[0, 2]])


SAMPLE = [  # layer, state dtype, window, paged, packed; previous tokens: none, all that fit, between
    ((0, 0, 0, True, False), (6, 0)),
    ((0, 1, 3, False, True), (8, 3)),
    ((0, 2, 4, True, True), (5, 4)),
    ((1, 0, 5, False, False), (11, 10)),
    ((0, 1, 1, True, False), (4, 10)),
    ((0, 2, 6, True, True), (7, 2)),
    ((0, 0, 2, False, False), (16, 1)),
    ((0, 0, 7, True, True), (20, 5)),
    ((0, 1, 8, False, False), (32, 0)),
]


@pytest.mark.parametrize("case, previous", SAMPLE, ids=str)
def test_a_sample_of_the_published_rows(case, previous):
    """Every value of every factor at least once."""
    check(*case, previous, repeats=2)


@pytest.mark.slow
def test_the_published_rows():
    """Every number of previous tokens (of the longest windows every eighth), and the same bits five times over."""
    count = 0
    for case in GRID:
        most = WINDOWS[case[2]][1]
        for k in range(0, most + 1, 1 if most <= 16 else 8):
            check(*case, (k, most - k), repeats=5 if k == most // 2 else 1)
            count += 1
    print(f"checkpointing_ssu: {count} of {count} published cases and such of longer windows")
