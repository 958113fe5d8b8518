"""causal_conv1d_update: what it refuses, in one sentence and with nothing written; on devices what it does instead."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused

from llamba_kernels.ops import causal_conv1d_update

SHARED = torch.zeros(64)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def good(**change):
    """Two sequences of three tokens, four channels, in slots 2 and 0 of three."""
    return (
        dict(
            x=torch.ones(2, 4, 3),
            conv_state=torch.ones(3, 4, 5),
            weight=torch.ones(4, 3),
            bias=torch.ones(4),
            conv_state_indices=int32(2, 0),
            out=torch.full((2, 4, 3), 7.0),
        )
        | change
    )


PACKED = dict(x=torch.ones(6, 4), out=torch.full((6, 4), 7.0))
WINDOWS = torch.zeros(3, 3, 4, 2)
REFUSED = {
    "x dtype": (dict(x=torch.ones(2, 4, 3).double()), TypeError, "x must be float32, bfloat16 or float16; got float64"),
    "x dim": (dict(x=torch.ones(4)), ValueError, "x must have 2 to 3 dimensions; got shape (4,)"),
    "packed x dim": (dict(query_start_loc=int32(0, 3)), ValueError, "x must have 2 dimensions; got shape (2, 4, 3)"),
    "weight dtype": (
        dict(weight=torch.ones(4, 3).int()),
        TypeError,
        "weight must be float32, bfloat16 or float16; got int32",
    ),
    "weight dim": (dict(weight=torch.ones(4, 1, 3)), ValueError, "weight must have 2 dimensions; got shape (4, 1, 3)"),
    "weight shape": (
        dict(weight=torch.ones(5, 3)),
        ValueError,
        "weight must have shape (dim, width) = (4, 3); got (5, 3)",
    ),
    "width": (dict(weight=torch.ones(4, 5)), ValueError, "width must be 2 to 4; got 5"),
    "bias shape": (dict(bias=torch.ones(3)), ValueError, "bias must have shape (dim) = (4,); got (3,)"),
    "bias dtype": (
        dict(bias=torch.ones(4).half()),
        TypeError,
        "bias must have the dtype of weight, float32; got float16",
    ),
    "state shape": (
        dict(conv_state=torch.ones(3, 5, 5)),
        ValueError,
        "conv_state must have shape (nslots, dim, state_len) = (3, 4, 5); got (3, 5, 5)",
    ),
    "state length": (
        dict(conv_state=torch.ones(3, 4, 1)),
        ValueError,
        "state_len, the last size of conv_state, must be 2 to 2147483647; got 1",
    ),
    "too few slots": (
        dict(conv_state=torch.ones(1, 4, 5), conv_state_indices=None),
        ValueError,
        "slots of conv_state must be 2 to 2147483647; got 1",
    ),
    "indices shape": (
        dict(conv_state_indices=int32(2)),
        ValueError,
        "conv_state_indices must have shape (batch) = (2,); got (1,)",
    ),
    "indices dtype": (
        dict(conv_state_indices=torch.tensor([2, 0])),
        TypeError,
        "conv_state_indices must be int32; got int64",
    ),
    "cache_seqlens shape": (
        dict(cache_seqlens=int32(1)),
        ValueError,
        "cache_seqlens must have shape (batch) = (2,); got (1,)",
    ),
    "ring of drafts": (
        dict(cache_seqlens=int32(1, 1), num_accepted_tokens=int32(1, 1)),
        ValueError,
        "cache_seqlens must come without num_accepted_tokens, initial_state_idx and block_idx_last_scheduled_token; "
        "got num_accepted_tokens",
    ),
    "blocks without indices": (
        dict(conv_state_indices=None, initial_state_idx=int32(0, 0)),
        ValueError,
        "initial_state_idx must come with conv_state_indices; got none",
    ),
    "parents dtype": (
        dict(retrieve_parent_token=torch.zeros(2, 3)),
        TypeError,
        "retrieve_parent_token must be int32; got float32",
    ),
    "parents shape": (
        dict(retrieve_parent_token=torch.zeros(2, 2).int()),
        ValueError,
        "retrieve_parent_token must have shape (batch, ntokens) = (2, 3); got (2, 2)",
    ),
    "windows shape": (
        dict(intermediate_conv_window=torch.zeros(3, 3, 4, 3)),
        ValueError,
        "intermediate_conv_window must have shape (entries, steps, dim, width - 1) = (3, 3, 4, 2); got (3, 3, 4, 3)",
    ),
    "windows steps": (
        dict(intermediate_conv_window=torch.zeros(3, 2, 4, 2)),
        ValueError,
        "steps must be 3 to 2147483647; got 2",
    ),
    "windows dtype": (
        dict(intermediate_conv_window=WINDOWS.half()),
        TypeError,
        "intermediate_conv_window must have the dtype of conv_state, float32; got float16",
    ),
    "activation": (
        dict(activation="gelu"),
        ValueError,
        "activation must be None, silu, swish or a bool; got 'gelu'",
    ),
    "out shape": (
        dict(out=torch.zeros(2, 4)),
        ValueError,
        "out must have the shape of x, (2, 4, 3); got (2, 4)",
    ),
    "out overlaps x": (
        dict(x=SHARED[:24].view(2, 4, 3), out=SHARED[3:27].view(2, 4, 3)),
        TypeError,
        "out must be x itself or share no memory with x; got one that overlaps it in part",
    ),
    "out is x of a tree": (
        dict(x=SHARED[:24].view(2, 4, 3), out=SHARED[:24].view(2, 4, 3), retrieve_parent_token=torch.zeros(2, 3).int()),
        TypeError,
        "out must share no memory with x; got one that does",
    ),
    "state overlaps out": (
        dict(conv_state=SHARED[:60].view(3, 4, 5), out=SHARED[:24].view(2, 4, 3)),
        TypeError,
        "out must share no memory with conv_state; got one that does",
    ),
    "grad": (
        dict(x=torch.zeros(2, 4, 3, requires_grad=True)),
        ValueError,
        "x must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
}
REFUSED_ON_CPU = {  # what lies in device memory is looked at on the CPU alone
    "slot": (
        dict(conv_state_indices=int32(3, 0)),
        "conv_state_indices must be below the slots of conv_state, 3; got 3 for sequence 0",
    ),
    "slot twice": (
        dict(conv_state_indices=int32(1, 1)),
        "conv_state_indices must name a slot that is written for one sequence only; got 1 for two",
    ),
    "written and read": (
        dict(
            conv_state_indices=int32(0, 1, 1, 2).view(2, 2),
            initial_state_idx=int32(1, 0),
            block_idx_last_scheduled_token=int32(0, 0),
        ),
        "conv_state_indices must name a slot that is written for one sequence only; got 1 for two",
    ),
    "block": (
        dict(initial_state_idx=int32(0, 1)),
        "initial_state_idx must be 0 to 0, a column of conv_state_indices; got 1",
    ),
    "no draft accepted": (
        dict(num_accepted_tokens=int32(1, 0)),
        "num_accepted_tokens must be 1 to state_len - width + 2 = 4; got 0 for sequence 1",
    ),
    "too many accepted": (
        dict(num_accepted_tokens=int32(5, 1)),
        "num_accepted_tokens must be 1 to state_len - width + 2 = 4; got 5 for sequence 0",
    ),
    "no room for drafts": (
        dict(num_accepted_tokens=int32(1, 1), conv_state=torch.ones(3, 4, 3)),
        "state_len must be at least width - 2 + the tokens of a sequence = 4 with num_accepted_tokens; got 3",
    ),
    "query_start descends": (
        PACKED | dict(query_start_loc=int32(0, 4, 3)),
        "query_start_loc must not descend, from at least 0 to at most the tokens of x, 6; got 4 before 3",
    ),
    "query_start beyond": (
        PACKED | dict(query_start_loc=int32(0, 4, 7)),
        "query_start_loc must not descend, from at least 0 to at most the tokens of x, 6; got 4 before 7",
    ),
    "parent": (
        dict(retrieve_parent_token=int32(0, 0, 2, 0, 0, 0).view(2, 3)),
        "retrieve_parent_token must be -1 or an earlier token; got 2 for token 2 of sequence 0",
    ),
    "window entry twice": (
        dict(intermediate_conv_window=WINDOWS, intermediate_state_indices=int32(1, 1)),
        "intermediate_state_indices (if None, conv_state_indices) must name one of the 3 entries of "
        "intermediate_conv_window for each sequence; got 1",
    ),
    "window entry": (
        dict(intermediate_conv_window=WINDOWS[:2]),
        "intermediate_state_indices (if None, conv_state_indices) must name one of the 2 entries of "
        "intermediate_conv_window for each sequence; got 2",
    ),
    "window of too many tokens": (
        PACKED | dict(query_start_loc=int32(0, 2, 6), intermediate_conv_window=WINDOWS),
        "intermediate_conv_window must have an entry for each of 4 tokens; got 3",
    ),
}


def check_refused(change, kind, sentence):
    inputs = good(**change)
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    assert_refused(kind, f"causal_conv1d_update: {sentence}", causal_conv1d_update, **inputs)
    for name, value in before.items():
        assert_bitwise(inputs[name].detach(), value.detach())


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    check_refused(change, kind, sentence)


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, sentence", REFUSED_ON_CPU.values(), ids=REFUSED_ON_CPU)
def test_refusals_of_what_memory_holds(change, sentence):
    check_refused(change, ValueError, sentence)


UNDEFINED_ON_DEVICES = {"slot twice", "written and read", "window entry twice"}
PARENT = dict(retrieve_parent_token=int32(0, 0, -1, 0, 0, 0).view(2, 3))


@pytest.mark.device_only
@pytest.mark.parametrize("name", sorted(set(REFUSED_ON_CPU) - UNDEFINED_ON_DEVICES))
def test_on_devices_a_sequence_that_does_not_fit_is_padding(name):
    """Its out is zero, its slot untouched; with a bad query_start nothing is written; a bad parent is -1."""
    inputs = good(**REFUSED_ON_CPU[name][0])
    before = inputs["conv_state"].clone()
    out = causal_conv1d_update(**inputs)
    assert out.isfinite().all()
    if name == "parent":
        expected = good(**PARENT)
        assert_bitwise(out, causal_conv1d_update(**expected))
        return assert_bitwise(inputs["conv_state"], expected["conv_state"])
    wrong = {"block": 1, "no draft accepted": 1, "window of too many tokens": 1, "query_start descends": 1}
    wrong = wrong.get(name, 1 if name == "query_start beyond" else 0)
    slot = int(inputs["conv_state_indices"].flatten()[wrong])
    if slot < len(before):
        assert_bitwise(inputs["conv_state"][slot], before[slot])
    if "query_start" in name:
        assert (out[4:] == 7).all() and (out[:4] != 7).all()
    elif name == "window of too many tokens":
        assert (out[2:] == 0).all() and (out[:2] != 0).all()
    else:
        assert (out[wrong] == 0).all() and (name == "no room for drafts" or (out[1 - wrong] != 0).all())
