"""causal-conv1d's own grid of update tests (its tests/test_causal_conv1d.py), written anew, at its tolerances."""

import itertools

import pytest
import torch

from llamba_kernels.dropins import causal_conv1d_update

pytestmark = pytest.mark.cpu_only  # thousands of channels: far too many for the executor
FACTORS = dict(
    dtype=(torch.float32, torch.float16, torch.bfloat16),
    silu=(False, True),
    bias=(False, True),
    ring=(False, True),
    seqlen=(1, 4, 5),
    width=(2, 3, 4),
    dim=(2048, 2064, 4096),
)
TOLERANCES = {torch.float32: (3e-4, 1e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (1e-2, 5e-2)}
GRID = [dict(zip(FACTORS, values, strict=True)) for values in itertools.product(*FACTORS.values())]
SLOTS = ("each its own", "64 of more", "half of them padding")
BATCH = 64


def formula(x, history, weight, bias, silu):
    """x (batch, dim, seqlen) after history (batch, dim, width-1): torch's conv, in the weight's dtype."""
    whole = torch.cat([history, x], -1).to(weight.dtype)
    out = torch.nn.functional.conv1d(whole, weight.unsqueeze(1), bias, groups=len(weight))
    return (torch.nn.functional.silu(out) if silu else out).to(x.dtype)


def check(slots, *, dtype, silu, bias, ring, seqlen, width, dim, spare=10):
    """spare: slots for each sequence, unless each has its own."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, seqlen, dim, dtype=dtype).transpose(1, 2)
    length, total = int(torch.randint(width - 1, width + 10, ())), BATCH if slots == SLOTS[0] else spare * BATCH
    conv_state = torch.randn(total, length, dim, dtype=dtype).transpose(1, 2)
    weight, bias = torch.randn(dim, width), torch.randn(dim) if bias else None
    indices = None if slots == SLOTS[0] else torch.randperm(total)[:BATCH].int()
    real = torch.ones(BATCH, dtype=torch.bool)
    if slots == SLOTS[2]:
        real[torch.randperm(BATCH)[: BATCH // 2]] = False
        indices[~real] = -1
    used = torch.arange(BATCH) if indices is None else indices[real].long()
    start = torch.randint(0, 1024, (BATCH,), dtype=torch.int32) if ring else None
    expected, before = conv_state.clone(), conv_state[used]
    if ring:
        columns = (torch.arange(1 - width, seqlen) + start[real][:, None]) % length
        columns = columns[:, None].expand(-1, dim, -1)
        history = before.gather(2, columns[..., : width - 1])
        late = slice(max(seqlen - length, 0), None)  # of two tokens in one column the later one stays
        expected[used] = before.scatter(2, columns[..., width - 1 :][..., late], x[real][..., late])
    else:
        history = before[..., length - (width - 1) :]
        expected[used] = torch.cat([before, x[real]], -1)[..., -length:]
    out = causal_conv1d_update(x, conv_state, weight, bias, "silu" if silu else None, start, indices)
    assert torch.equal(conv_state, expected)
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(out[real], formula(x[real], history, weight, bias, silu), rtol=rtol, atol=atol)
    assert (out[~real] == 0).all()


SAMPLE = [  # dtype, silu, bias, ring, seqlen, width, dim: each value at least once, each pair of switches in each state
    (0, 0, 0, 0, 0, 0, 0),
    (1, 1, 0, 1, 1, 2, 1),
    (2, 0, 1, 1, 2, 1, 2),
    (0, 1, 1, 0, 2, 2, 0),
    (1, 0, 1, 0, 0, 1, 1),
    (2, 1, 0, 1, 1, 0, 0),
    (2, 1, 1, 1, 0, 2, 0),
]


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("row", SAMPLE, ids=str)
def test_a_sample_of_the_published_grid(row, slots):
    case = {name: values[i] for (name, values), i in zip(FACTORS.items(), row, strict=True)}
    check(slots, spare=2, **case)


@pytest.mark.slow
@pytest.mark.parametrize("slots", SLOTS)
def test_the_published_grid(slots):
    cases = [case for case in GRID if not (slots == SLOTS[2] and case["ring"])]
    for case in cases:
        check(slots, **case)
    print(f"causal_conv1d_update, {slots}: {len(cases)} of {len(cases)} published cases")
