"""conv1d_verify, mamba1_verify and mamba1_materialize refuse by one sentence, and write nothing then."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused
from test_mamba1_verify import int32, make_layer

from llamba_kernels import ops

CONV = ("x", "conv_weight", "conv_bias", "rows", "cursor", "slots")
VERIFY = ("x", "dt", "B", "C", "z", "A", "D", "dt_bias", "checkpoint", "x_rows", "dt_rows", "B_rows", "cursor", "slots")
STATE = ("A", "dt_bias", "checkpoint", "rows", "x_rows", "dt_rows", "B_rows", "cursor", "slots")


def calls(layer):
    """By operator: the arguments of a step of three tokens in slot 0 that all would take, by name."""
    conv, keywords = layer.conv_arguments(layer.raw(1, 3), int32(0))
    verify = layer.arguments(layer.tokens(1, 3), int32(0))
    state = layer.materialize_arguments(int32(1))
    return {
        "conv1d_verify": dict(zip(CONV, conv, strict=True)) | keywords,
        "mamba1_verify": dict(zip(VERIFY, verify, strict=True)) | layer.heads | {"fold_every": 2},
        "mamba1_materialize": dict(zip(STATE, state, strict=True)) | layer.materialize_keywords,
    }


REFUSALS = [
    ("conv1d_verify", "x", lambda t: t.double(), "x must have the dtype of rows, float32; got float64"),
    ("conv1d_verify", "rows", lambda t: t.double(), "rows must be float32, bfloat16 or float16; got float64"),
    (
        "conv1d_verify",
        "x",
        lambda t: t[..., 1:],
        "x must have shape (batch, max_ntokens, x_heads * headdim) = (1, 3, 96); got (1, 3, 95)",
    ),
    (
        "conv1d_verify",
        "rows",
        lambda t: t[:, 1:],
        "rows must have shape (nslots, capacity, x_heads * headdim) = (2, 14, 96); got (2, 13, 96)",
    ),
    ("conv1d_verify", "conv_bias", lambda t: t[1:], "conv_bias must have shape (dim) = (96,); got (95,)"),
    ("conv1d_verify", "headdim", lambda n: 7, "headdim must divide the rows of conv_weight, 96; got 7"),
    ("conv1d_verify", "x", lambda t: t.mT.contiguous().mT, "x must have stride 1 in dimension -1; got 3"),
    ("mamba1_verify", "x", lambda t: t.double(), "x must have the dtype of x_rows, float32; got float64"),
    ("mamba1_verify", "z", lambda t: t.bfloat16(), "z must have the dtype of x_rows, float32; got bfloat16"),
    ("mamba1_verify", "A", lambda t: t.double(), "A must be float32; got float64"),
    ("mamba1_verify", "A", lambda t: t[:, :8], "A must have shape (d_inner, dstate) = (96, 16); got (96, 8)"),
    ("mamba1_verify", "D", lambda t: t[1:], "D must have shape (d_inner) = (96,); got (95,)"),
    ("mamba1_verify", "slots", lambda t: t.long(), "slots must be int32; got int64"),
    (
        "mamba1_verify",
        "B",
        lambda t: t[..., 1:],
        "B must have shape (batch, max_ntokens, B_heads * dstate) = (1, 3, 16); got (1, 3, 15)",
    ),
    (
        "mamba1_verify",
        "B_rows",
        lambda t: t[:, 1:],
        "B_rows must have shape (nslots, capacity, B_heads * dstate) = (2, 14, 16); got (2, 13, 16)",
    ),
    (
        "mamba1_verify",
        "cursor",
        lambda t: t[:, :-3],
        "last dimension of cursor must be 19 to 21; got 18",
    ),
    ("mamba1_verify", "checkpoint", lambda t: t[0], "checkpoint must have 3 dimensions; got shape (96, 16)"),
    (
        "mamba1_verify",
        "checkpoint",
        lambda t: t[:1].expand(2, -1, -1),
        "checkpoint must have strides with which no two elements share memory; got shape (2, 96, 16) "
        "with strides (0, 16, 1)",
    ),
    ("mamba1_verify", "B_heads", lambda n: 0, "B_heads must be 1 to 16777216; got 0"),
    ("mamba1_verify", "fold_every", lambda n: 0, "fold_every must be 1 to 16777216; got 0"),
    (
        "mamba1_materialize",
        "rows",
        lambda t: t[:, 1:],
        "rows must have shape (nslots, capacity, x_dim) = (2, 14, 96); got (2, 13, 96)",
    ),
    (
        "mamba1_materialize",
        "dt_rows",
        lambda t: t.half(),
        "dt_rows must have the dtype of x_rows, float32; got float16",
    ),
]
DATA_REFUSALS = [  # of what lies in memory: a GPU cannot report it
    ("conv1d_verify", "slots", lambda t: t + 5, "slots must be below nslots = 2; got 5 at index 0"),
    ("conv1d_verify", "slots", lambda t: t + 1, "slot 1 must have an open step; got none (cursor_begin opens it)"),
    ("mamba1_verify", "slots", lambda t: t + 1, "slot 1 must have an open step; got none (cursor_begin opens it)"),
    (
        "mamba1_verify",
        "cursor",
        lambda t: torch.full_like(t, 2**31 - 1),
        "cursor must describe slot 0 as the cursor ops write it for width 4 and 14 rows; got position 2147483647, "
        "live 2147483647, fold 2147483647, ntokens 2147483647 and a row table that does not fit",
    ),
    (
        "mamba1_materialize",
        "slots",
        lambda t: t - 1,
        "slot 0 must have no open step (commit it, or reset the slot if the step failed); got one of 3 tokens",
    ),
]


def refusals(table, marks=()):
    return [pytest.param(*row, id=f"{row[0]} {row[3].split('; got')[0]}", marks=marks) for row in table]


@pytest.mark.parametrize(
    "op, name, change, sentence", refusals(REFUSALS) + refusals(DATA_REFUSALS, pytest.mark.cpu_only)
)
def test_refusals_are_one_sentence_and_change_nothing(op, name, change, sentence):
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(3))
    before = [buffer.clone() for buffer in (*layer.buffers, layer.cursor.table)]
    arguments = calls(layer)[op]
    arguments[name] = change(arguments[name])
    with pytest.raises((ValueError, TypeError)) as error:
        getattr(ops, op)(**arguments)
    assert str(error.value) == f"{op}: {sentence}"
    for old, new in zip(before, (*layer.buffers, layer.cursor.table), strict=True):
        assert_bitwise(new, old)


@pytest.mark.parametrize(
    "op, written, source",
    [
        ("conv1d_verify", "rows", "x"),
        ("mamba1_verify", "x_rows", "D"),
        ("mamba1_verify", "checkpoint", "A"),
        ("mamba1_verify", "B_rows", "dt_rows"),
    ],
)
def test_inputs_within_what_is_written_are_refused(op, written, source):
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(3))
    arguments = calls(layer)[op]
    memory = arguments["dt_rows" if source == "dt_rows" else written].view(-1)
    inside = written if source == "dt_rows" else source
    arguments[inside] = memory[: arguments[inside].numel()].view(arguments[inside].shape)
    first = "dt_rows" if source == "dt_rows" else written
    sentence = f"{op}: {first} must share no memory with {inside}; got one that does"
    assert_refused(TypeError, sentence, getattr(ops, op), **arguments)


def test_sizes_that_the_kernels_do_not_take_are_refused():
    for change, op, sentence in (
        (dict(dstate=24), "mamba1_verify", "dstate must be a multiple of 16 up to 64; got 24"),
        (dict(dstate=80), "mamba1_verify", "dstate must be a multiple of 16 up to 64; got 80"),
        (dict(dstate=80), "mamba1_materialize", "dstate must be a multiple of 16 up to 64; got 80"),
        (dict(B_heads=5), "mamba1_verify", "B_heads must divide d_inner = 96; got 5"),
        (dict(C_heads=5), "mamba1_verify", "C_heads must divide d_inner = 96; got 5"),
        (dict(x_heads=4, headdim=16), "conv1d_verify", "x_heads must divide nheads = 6; got 4"),
    ):
        layer = make_layer(**change)
        layer.cursor.begin(int32(0), int32(3))
        assert_refused(ValueError, f"{op}: {sentence}", getattr(ops, op), **calls(layer)[op])


@pytest.mark.cpu_only
@pytest.mark.parametrize("op", ["conv1d_verify", "mamba1_verify"])
def test_steps_that_do_not_fit_are_refused(op):
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(4))
    arguments = calls(layer)[op]
    sentence = f"{op}: x must hold the open step's 4 tokens of slot 0; got 3"
    assert_refused(ValueError, sentence, getattr(ops, op), **arguments)
    layer.cursor.commit(int32(0), int32(0))
    layer.cursor.begin(int32(0), int32(3))
    sentence = f"{op}: parents must be -1 or an earlier token of the step; got 1 for token 1 of slot 0"
    assert_refused(ValueError, sentence, getattr(ops, op), **arguments, parents=int32(-1, 1, 0).view(1, 3))
    twice = {
        name: torch.cat([arguments[name]] * 2) for name in ("x", "dt", "B", "C", "z", "slots") if name in arguments
    }
    sentence = f"{op}: slots must name a slot at most once; got 0 twice"
    assert_refused(ValueError, sentence, getattr(ops, op), **arguments | twice)


@pytest.mark.cpu_only
def test_another_fold_every_than_the_cursors_is_refused():
    layer = make_layer(fold_every=3)
    for _ in range(2):
        layer.cursor.begin(int32(0), int32(4))
        layer.verify(layer.tokens(1, 4), int32(0))
        layer.cursor.commit(int32(0), int32(2))
    layer.cursor.begin(int32(0), int32(3))
    sentence = "mamba1_verify: fold_every must be the session's, which divides the token that slot 0 folds to, 3; got 2"
    assert_refused(ValueError, sentence, ops.mamba1_verify, **calls(layer)["mamba1_verify"])
