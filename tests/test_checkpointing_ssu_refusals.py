"""checkpointing_ssu: what it refuses, in one sentence and with nothing written; on devices what it does instead."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused

from llamba_kernels.ops import checkpointing_ssu
from llamba_kernels.testing_dropins import Ring, make_checkpointing_ssu_parameters, make_checkpointing_ssu_tokens

SHARED = torch.zeros(3000)
SHAPE = (2, 3, 4, 5)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def good(**change):
    """Two sequences of 3 tokens in slots 2 and 0 of three; 4 heads of 5, dstate 16, 2 groups, rings of 6 + 3 rows."""
    torch.manual_seed(0)
    ring = Ring(3, 4, 5, 16, 2, 6, 3, dtype=torch.float32, state_dtype=torch.float32, poison=False)
    given = make_checkpointing_ssu_parameters(4, 5, 16) | make_checkpointing_ssu_tokens(2, 3, 4, 5, 16, 2)
    given |= dict(zip(("state", "x_cache", "B_cache", "dt_cache"), ring.arguments(), strict=False))
    given |= dict(ring_start=int32(1, 8, 3), prev_num_accepted_tokens=int32(5, 0, 2))
    return given | dict(state_batch_indices=int32(2, 0), out=torch.full(SHAPE, 7.0)) | change


PACKED = dict(  # one row of six tokens
    **{name: torch.ones(1, 6, 4, 5) for name in ("x", "z", "out")},
    **{name: torch.ones(1, 6, 2, 16) for name in "BC"},
    dt=torch.ones(1, 6, 4, 1).expand(1, 6, 4, 5),
    max_seqlen=3,
)
REFUSED = {
    "x dtype": (
        dict(x=torch.ones(SHAPE).double()),
        TypeError,
        "x must be float32, bfloat16 or float16; got float64",
    ),
    "state of 8 bits": (
        dict(state=torch.ones(3, 4, 5, 16).to(torch.int8)),
        TypeError,
        "state must be float32, bfloat16 or float16; got int8",
    ),
    "dstate": (
        dict(
            state=torch.ones(3, 4, 5, 24),
            B_cache=torch.ones(3, 2, 9, 24),
            A=torch.ones(4, 1, 1).expand(4, 5, 24),
            B=torch.ones(2, 3, 2, 24),
            C=torch.ones(2, 3, 2, 24),
        ),
        ValueError,
        "dstate must be a multiple of 16 up to 256; got 24",
    ),
    "groups": (
        dict(
            B_cache=torch.ones(3, 3, 9, 16),
            B=torch.ones(2, 3, 3, 16),
            C=torch.ones(2, 3, 3, 16),
        ),
        ValueError,
        "ngroups must divide nheads = 4; got 3",
    ),
    "rings differ": (
        dict(B_cache=torch.ones(3, 2, 8, 16)),
        ValueError,
        "B_cache must have shape (nslots, ngroups, rows, dstate) = (3, 2, 9, 16); got (3, 2, 8, 16)",
    ),
    "dt_cache dtype": (
        dict(dt_cache=torch.ones(3, 4, 9).half()),
        TypeError,
        "dt_cache must be float32; got float16",
    ),
    "x_cache dtype": (
        dict(x_cache=torch.ones(3, 4, 9, 5).half()),
        TypeError,
        "x_cache must have the dtype of x, float32; got float16",
    ),
    "cursors of the batch": (
        dict(ring_start=int32(0, 0)),
        ValueError,
        "ring_start must have shape (nslots) = (3,); got (2,)",
    ),
    "cursor dtype": (
        dict(prev_num_accepted_tokens=torch.zeros(3).long()),
        TypeError,
        "prev_num_accepted_tokens must be int32; got int64",
    ),
    "tokens": (
        dict(x=torch.ones(2, 10, 4, 5), dt=torch.ones(2, 10, 4, 1).expand(2, 10, 4, 5)),
        ValueError,
        "tokens, the size of x in dimension 1, must be 0 to 9; got 10",
    ),
    "dt shape": (
        dict(dt=torch.ones(2, 3, 4)),
        ValueError,
        "dt must have shape (2, 3, 4, 5); got (2, 3, 4)",
    ),
    "dt of each dim": (
        dict(dt=torch.ones(SHAPE)),
        TypeError,
        "dt must have stride 0 in dimension 3, one number of each head repeated; got 1",
    ),
    "A of each state": (
        dict(A=torch.ones(4, 5, 16)),
        TypeError,
        "A must have stride 0 in dimension 1, one number of each head repeated; got 16",
    ),
    "A dtype": (
        dict(A=torch.ones(4, 1, 1).int().expand(4, 5, 16)),
        TypeError,
        "A must be float32, bfloat16 or float16; got int32",
    ),
    "D shape": (dict(D=torch.ones(4)), ValueError, "D must have shape (nheads, headdim) = (4, 5); got (4,)"),
    "z stride": (
        dict(z=torch.ones(2, 3, 5, 4).transpose(2, 3)),
        TypeError,
        "z must have stride 1 in dimension -1; got 4",
    ),
    "indices": (
        dict(state_batch_indices=int32(1)),
        ValueError,
        "state_batch_indices must have shape (sequences) = (2,); got (1,)",
    ),
    "indices dtype": (
        dict(state_batch_indices=torch.ones(2)),
        TypeError,
        "state_batch_indices must be int32; got float32",
    ),
    "batch of packed tokens": (
        dict(cu_seqlens=int32(0, 3), max_seqlen=3),
        ValueError,
        "size of x in dimension 0 with cu_seqlens must be 1; got 2",
    ),
    "max_seqlen": (
        PACKED | dict(cu_seqlens=int32(0, 3, 6), max_seqlen=10),
        ValueError,
        "max_seqlen must be 0 to 9; got 10",
    ),
    "out overlaps state": (
        dict(state=SHARED[:960].view(3, 4, 5, 16), out=SHARED[900:1020].view(SHAPE)),
        TypeError,
        "out must share no memory with state; got one that does",
    ),
    "rings overlap": (
        dict(x_cache=SHARED[:540].view(3, 4, 9, 5), B_cache=SHARED[500:1364].view(3, 2, 9, 16)),
        TypeError,
        "x_cache must share no memory with B_cache; got one that does",
    ),
    "grad": (
        dict(B=torch.zeros(2, 3, 2, 16, requires_grad=True)),
        ValueError,
        "B must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
}
REFUSED_ON_CPU = {  # what lies in device memory is looked at on the CPU alone; which sequence it is about
    "slot": (
        dict(state_batch_indices=int32(2, 3)),
        1,
        "state_batch_indices must be below the slots of state, 3; got 3 for sequence 1",
    ),
    "slot twice": (
        dict(state_batch_indices=torch.tensor([1, 1])),
        None,
        "state_batch_indices must name a slot at most once; got 1 twice",
    ),
    "start": (dict(ring_start=int32(9, 8, 3)), 1, "ring_start must be 0 to 8; got 9 for slot 0"),
    "start below": (dict(ring_start=int32(1, 8, -1)), 0, "ring_start must be 0 to 8; got -1 for slot 2"),
    "previous": (
        dict(prev_num_accepted_tokens=int32(7, 0, 2)),
        1,
        "prev_num_accepted_tokens must be 0 to 6, what a ring of 9 rows has beside 3 tokens; got 7 for slot 0",
    ),
    "previous below": (
        dict(prev_num_accepted_tokens=int32(5, 0, -1)),
        0,
        "prev_num_accepted_tokens must be 0 to 6, what a ring of 9 rows has beside 3 tokens; got -1 for slot 2",
    ),
    "too many tokens": (
        PACKED | dict(cu_seqlens=int32(0, 2, 6)),
        1,
        "max_seqlen must be at least the tokens of a sequence, 4; got 3",
    ),
    "cu_seqlens descends": (
        PACKED | dict(cu_seqlens=int32(0, 3, 2)),
        1,
        "cu_seqlens must not descend, from at least 0 to at most the tokens of x, 6; got 3 before 2",
    ),
    "cu_seqlens beyond": (
        PACKED | dict(cu_seqlens=int32(0, 3, 7)),
        1,
        "cu_seqlens must not descend, from at least 0 to at most the tokens of x, 6; got 3 before 7",
    ),
}


def check_refused(change, kind, sentence):
    inputs = good(**change)
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    assert_refused(kind, f"checkpointing_ssu: {sentence}", checkpointing_ssu, **inputs)
    for name, value in before.items():
        assert_bitwise(inputs[name].detach(), value.detach())


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    check_refused(change, kind, sentence)


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, _, sentence", REFUSED_ON_CPU.values(), ids=REFUSED_ON_CPU)
def test_refusals_of_what_memory_holds(change, _, sentence):
    check_refused(change, ValueError, sentence)


@pytest.mark.device_only
@pytest.mark.parametrize("name", [name for name, (_, which, _) in REFUSED_ON_CPU.items() if which is not None])
def test_on_devices_a_sequence_that_does_not_fit_is_padding(name):
    """Its out is zero, or left alone if its tokens cannot be told; the other one is as ever."""
    change, which, _ = REFUSED_ON_CPU[name]
    inputs = good(**change)
    inputs["out"] = torch.full(inputs["out"].shape, 7.0)
    caches = ("state", "x_cache", "B_cache", "dt_cache")
    before = {cache: inputs[cache].clone() for cache in caches}
    out = checkpointing_ssu(**inputs)
    slot = int(inputs["state_batch_indices"][which])
    for cache in caches if slot < 3 else ():
        assert_bitwise(inputs[cache][slot], before[cache][slot])
    spans = [slice(0, 3), slice(3, 6)] if "cu_seqlens" in name else [slice(0, 2), slice(2, 6)]
    wrong, right = (out[0, spans[i]] if "cu_seqlens" in inputs else out[i] for i in (which, 1 - which))
    assert (wrong == (7 if "cu_seqlens" in name else 0)).all()
    assert right.isfinite().all() and (right != 7).all() and (right != 0).any()
