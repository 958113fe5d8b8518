"""What selective_state_update and its drop-in refuse, and that a refused call changes nothing."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused
from ssu_cases import copied, make_inputs

from llamba_kernels import dropins
from llamba_kernels.ops import selective_state_update

SHARED = torch.ones(3, 4, 20)
STATE = torch.ones(3, 4, 20, 32)
BUFFER = torch.zeros(3, 2, 4, 20, 32)
REFUSED = {
    "state dim": (dict(state=STATE[0, 0]), ValueError, "state must have 3 to 4 dimensions; got shape (20, 32)"),
    "state dtype": (dict(state=STATE.double()), TypeError, "state must be float32, bfloat16 or float16; got float64"),
    "int8 state": (dict(state=STATE.char()), TypeError, "state must be float32, bfloat16 or float16; got int8"),
    "state stride": (
        dict(state=STATE.mT.contiguous().mT),
        TypeError,
        "state must have stride 1 in dimension -1; got 20",
    ),
    "dstate": (dict(state=torch.ones(3, 4, 20, 257)), ValueError, "dstate must be 1 to 256; got 257"),
    "few slots": (
        dict(state=STATE[:2]),
        ValueError,
        "state must have a slot for each of 3 sequences unless state_batch_indices says which; got 2",
    ),
    "x dim": (dict(x=SHARED[0]), ValueError, "x must have 3 to 4 dimensions; got shape (4, 20)"),
    "x heads": (dict(x=SHARED[:, :3]), ValueError, "nheads of x must be 4; got 3"),
    "x headdim": (dict(x=SHARED[..., :9]), ValueError, "headdim of x must be 20; got 9"),
    "x dtype": (dict(x=SHARED.double()), TypeError, "x must be float32, bfloat16 or float16; got float64"),
    "dt shape": (dict(dt=SHARED[:2]), ValueError, "dt must have the shape of x, (3, 4, 20); got (2, 4, 20)"),
    "dt dtype": (dict(dt=SHARED.int()), TypeError, "dt must be float32, bfloat16 or float16; got int32"),
    "z shape": (dict(z=SHARED[:2]), ValueError, "z must have the shape of x, (3, 4, 20); got (2, 4, 20)"),
    "A shape": (
        dict(A=-torch.ones(4, 20)),
        ValueError,
        "A must have shape (nheads, headdim, dstate) = (4, 20, 32); got (4, 20)",
    ),
    "A stride": (dict(A=torch.ones(4, 32, 20).mT), TypeError, "A must have stride 1 in dimension -1; got 20"),
    "D shape": (dict(D=torch.ones(4)), ValueError, "D must have shape (nheads, headdim) = (4, 20); got (4,)"),
    "dt_bias shape": (
        dict(dt_bias=torch.ones(20)),
        ValueError,
        "dt_bias must have shape (nheads, headdim) = (4, 20); got (20,)",
    ),
    "B batch": (dict(B=torch.ones(2, 2, 32)), ValueError, "batch of B must be 3; got 2"),
    "B dstate": (dict(B=torch.ones(3, 2, 16)), ValueError, "dstate of B must be 32; got 16"),
    "C groups": (dict(C=torch.ones(3, 4, 32)), ValueError, "ngroups of C must be 2; got 4"),
    "groups": (
        dict(B=torch.ones(3, 3, 32), C=torch.ones(3, 3, 32)),
        ValueError,
        "ngroups must divide nheads = 4; got 3",
    ),
    "out shape": (dict(out=SHARED[:2]), ValueError, "out must have the shape of x, (3, 4, 20); got (2, 4, 20)"),
    "out dtype": (dict(out=SHARED.half()), TypeError, "out must have the dtype of x, float32; got float16"),
    "out overlaps state": (
        dict(state=STATE, out=STATE[0, ..., :3].permute(2, 0, 1)),
        TypeError,
        "out must share no memory with state; got one that does",
    ),
    "out overlaps dt": (
        dict(dt=SHARED, out=SHARED),
        TypeError,
        "out must share no memory with dt; got one that does",
    ),
    "indices dim": (
        dict(state_batch_indices=torch.zeros(3, 1, 1).int()),
        ValueError,
        "state_batch_indices must have 1 to 2 dimensions; got shape (3, 1, 1)",
    ),
    "indices dtype": (
        dict(state_batch_indices=torch.zeros(3)),
        TypeError,
        "state_batch_indices must be int32; got float32",
    ),
    "few indices": (
        dict(state_batch_indices=torch.zeros(2).int()),
        ValueError,
        "rows of state_batch_indices must be 3 to 9223372036854775807; got 2",
    ),
    "accepted without slots": (
        dict(num_accepted_tokens=torch.tensor([1, 1, 1])),
        ValueError,
        "state_batch_indices must be given with num_accepted_tokens, which chooses among its columns; got None",
    ),
    "buffer and destination": (
        dict(intermediate_states_buffer=BUFFER, dst_state_batch_indices=torch.tensor([0, 1, 2])),
        ValueError,
        "dst_state_batch_indices must be None where intermediate_states_buffer is given; got both",
    ),
    "buffer dim": (
        dict(intermediate_states_buffer=BUFFER[0]),
        ValueError,
        "intermediate_states_buffer must have 5 dimensions; got shape (2, 4, 20, 32)",
    ),
    "buffer dtype": (
        dict(intermediate_states_buffer=BUFFER.half()),
        TypeError,
        "intermediate_states_buffer must have the dtype of state, float32; got float16",
    ),
    "buffer steps": (
        dict(intermediate_states_buffer=BUFFER[:, :0]),
        ValueError,
        "intermediate_states_buffer must have a step for each of 1 tokens; got 0",
    ),
    "parents without buffer": (
        dict(retrieve_parent_token=torch.zeros(3, 1).int()),
        ValueError,
        "intermediate_states_buffer must be given with retrieve_parent_token, which reads it; got None",
    ),
    "grad": (
        dict(A=-torch.ones(4, 20, 32, requires_grad=True)),
        ValueError,
        "A must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
    "softplus": (dict(dt_softplus=1), TypeError, "dt_softplus must be a bool; got int 1"),
}
IN_DATA = {  # on a device such indices are padding, or nothing is said of them
    "slot beyond": (
        dict(state_batch_indices=torch.tensor([0, 3, 1])),
        ValueError,
        "state_batch_indices must be below the 3 slots of state; got 3",
    ),
    "slot twice": (
        dict(state_batch_indices=torch.tensor([0, 2, 0])),
        ValueError,
        "state_batch_indices must give each sequence rows of its own to write; got 0 twice",
    ),
    "destination beyond": (
        dict(dst_state_batch_indices=torch.tensor([0, 9, 1])),
        ValueError,
        "dst_state_batch_indices must be below the 3 slots of state; got 9",
    ),
    "destination that another reads": (
        dict(dst_state_batch_indices=torch.tensor([1, -1, -1])),
        ValueError,
        "dst_state_batch_indices must give each sequence rows of its own to write; got 1 twice",
    ),
    "accepted beyond": (
        dict(num_accepted_tokens=torch.tensor([1, 3, 1]), state_batch_indices=torch.arange(6).view(3, 2) % 3),
        ValueError,
        "num_accepted_tokens must be at most the columns of state_batch_indices, 2; got 3 for sequence 1",
    ),
    "buffer rows": (
        dict(intermediate_states_buffer=BUFFER, intermediate_state_indices=torch.tensor([0, 3, 1])),
        ValueError,
        "intermediate_state_indices must be below the 3 rows of intermediate_states_buffer; got 3",
    ),
    "buffer row twice": (
        dict(intermediate_states_buffer=BUFFER, intermediate_state_indices=torch.tensor([1, 1, 0])),
        ValueError,
        "intermediate_state_indices must give each sequence rows of its own to write; got 1 twice",
    ),
}
PACKED = {
    "descending": ([0, 2, 1, 3], "cu_seqlens must ascend from at least 0 to at most the 3 tokens; got 2 and 1 around "
                   "sequence 1"),
    "negative": ([-1, 2, 3], "cu_seqlens must ascend from at least 0 to at most the 3 tokens; got -1 and 2 around "
                 "sequence 0"),
    "too long": ([0, 2, 4], "cu_seqlens must ascend from at least 0 to at most the 3 tokens; got 2 and 4 around "
                 "sequence 1"),
    "none": ([], "elements of cu_seqlens must be 1 to 16777216; got 0"),
}  # fmt: skip
COLUMNS = {  # on a device what has no column is not stored
    "destinations": (
        dict(dst_state_batch_indices=torch.arange(6).view(3, 2) % 3),
        "dst_state_batch_indices must have a column for each of 3 tokens of sequence 0; got 2",
    ),
    "sources": (
        dict(state_batch_indices=torch.arange(3)[:, None], num_accepted_tokens=torch.tensor([1, 1, 1])),
        "state_batch_indices must have a column for each of 3 tokens of sequence 0; got 1",
    ),
}


def refuse(kind, sentence, arguments):
    arguments = {"out": torch.full(arguments["x"].shape, 7.0)} | arguments
    before = {n: v.clone() for n, v in arguments.items() if torch.is_tensor(v)}
    assert_refused(kind, f"selective_state_update: {sentence}", selective_state_update, **arguments)
    for name, value in before.items():
        assert_bitwise(arguments[name], value)


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    refuse(kind, sentence, make_inputs() | change)


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, kind, sentence", IN_DATA.values(), ids=IN_DATA)
def test_refusals_of_indices(change, kind, sentence):
    refuse(kind, sentence, make_inputs() | change)


@pytest.mark.cpu_only  # on a device such sequences have no tokens
@pytest.mark.parametrize("lengths, sentence", PACKED.values(), ids=PACKED)
def test_packed_sequences(lengths, sentence):
    arguments = make_inputs(packed=[1, 1, 1]) | {"cu_seqlens": torch.tensor(lengths, dtype=torch.int32)}
    refuse(ValueError, sentence, arguments)


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, sentence", COLUMNS.values(), ids=COLUMNS)
def test_a_column_for_each_token(change, sentence):
    refuse(ValueError, sentence, make_inputs(ntokens=3) | change)


def test_a_parent_for_each_token():
    change = dict(
        retrieve_parent_token=torch.zeros(3, 2).int(), intermediate_states_buffer=torch.zeros(3, 3, 4, 20, 32)
    )
    sentence = "columns of retrieve_parent_token must be 3 to 16777216; got 2"
    refuse(ValueError, sentence, make_inputs(ntokens=3) | change)


def test_packed_shapes():
    arguments = make_inputs() | {"cu_seqlens": torch.tensor([0, 3])}
    assert selective_state_update(**copied(arguments)).shape == (3, 4, 20)
    refuse(ValueError, "x must have 3 dimensions; got shape (3, 1, 4, 20)", arguments | {"x": arguments["x"][:, None]})


DROP_IN = {
    "scales": (
        dict(state_scale=torch.ones(1)),
        "state_scale must be None, because states with scales are not supported (float32, bfloat16 and float16 are); "
        "got Tensor",
    ),
    "seed": (
        dict(rand_seed=torch.ones(1)),
        "rand_seed must be None, because states are rounded to nearest even; got one",
    ),
    "rounding": (
        dict(enable_stochastic_rounding=True),
        "enable_stochastic_rounding must be False, because states are rounded to nearest even; got True",
    ),
    "algorithm": (
        dict(algorithm="fast"),
        "algorithm must be one of ('auto', 'simple', 'vertical', 'horizontal', 'async_horizontal'); got 'fast'",
    ),
    "backend": (dict(backend="triton"), "backend must be one of ('auto', 'flashinfer', 'cake'); got 'triton'"),
    "two paddings": (
        dict(pad_slot_id=-1, null_block_id=0),
        "null_block_id must be pad_slot_id = -1 if both are given; got 0",
    ),
    "steps": (dict(cache_steps=2), "cache_steps must be 0 or at least the 3 tokens of x; got 2"),
}


@pytest.mark.parametrize("change, sentence", DROP_IN.values(), ids=DROP_IN)
def test_what_the_drop_in_does_not_do(change, sentence):
    arguments = make_inputs(ntokens=3)
    before = arguments["state"].clone()
    sentence = f"selective_state_update: {sentence}"
    assert_refused(ValueError, sentence, dropins.selective_state_update, **arguments, **change)
    assert_bitwise(arguments["state"], before)
