"""mamba2_verify refuses by one sentence, and writes nothing then; which algorithm a session has."""

import pytest
import torch
from helpers import assert_bitwise
from test_mamba2_verify import int32, make_layer

from llamba_kernels.cache import Session
from llamba_kernels.ops import mamba2_verify
from llamba_kernels.ops.mamba2_verify import choose_algorithm


def changed(name, value):
    def change(arguments, heads):
        names = [
            "xBC",
            "dt",
            "conv_weight",
            "conv_bias",
            "A",
            "D",
            "dt_bias",
            "checkpoint",
            "rows",
            "dt_rows",
            "cursor",
            "slots",
        ]
        if name in heads:
            return arguments, heads | {name: value}
        arguments = list(arguments)
        index = names.index(name)
        arguments[index] = value(arguments[index])
        return arguments, heads

    return change


REFUSALS = [
    (changed("xBC", lambda t: t.double()), "xBC must have the dtype of rows, float32; got float64"),
    (changed("dt", lambda t: t.bfloat16()), "dt must have the dtype of rows, float32; got bfloat16"),
    (changed("rows", lambda t: t.double()), "rows must be float32, bfloat16 or float16; got float64"),
    (changed("dt_rows", lambda t: t.bfloat16()), "dt_rows must have the dtype of rows, float32; got bfloat16"),
    (changed("checkpoint", lambda t: t.double()), "checkpoint must be float32, bfloat16 or float16; got float64"),
    (changed("A", lambda t: t.double()), "A must be float32; got float64"),
    (changed("slots", lambda t: t.long()), "slots must be int32; got int64"),
    (changed("cursor", lambda t: t.long()), "cursor must be int32; got int64"),
    (
        changed("xBC", lambda t: t[..., :-1]),
        "xBC must have shape (batch, max_ntokens, conv_dim) = (1, 3, 640); got (1, 3, 639)",
    ),
    (changed("dt", lambda t: t[:, :2]), "dt must have shape (batch, max_ntokens, nheads) = (1, 3, 8); got (1, 2, 8)"),
    (changed("A", lambda t: t[:-1]), "A must have shape (nheads) = (8,); got (7,)"),
    (changed("conv_weight", lambda t: t[1:]), "conv_weight must have shape (conv_dim, width) = (640, 4); got (639, 4)"),
    (changed("conv_bias", lambda t: t[1:]), "conv_bias must have shape (conv_dim) = (640,); got (639,)"),
    (
        changed("rows", lambda t: t[:, :-1]),
        "rows must have shape (nslots, capacity, x_heads * headdim + (B_heads + C_heads) * dstate) = (2, 16, 640); "
        "got (2, 15, 640)",
    ),
    (
        changed("slots", lambda t: torch.cat([t, t])),
        "xBC must have shape (batch, max_ntokens, conv_dim) = (2, 3, 640); got (1, 3, 640)",
    ),
    (changed("xBC", lambda t: t.mT.contiguous().mT), "xBC must have stride 1 in dimension -1; got 3"),
    (
        changed("checkpoint", lambda t: t[:1].expand(2, -1, -1, -1)),
        "checkpoint must have strides with which no two elements share memory; got shape (2, 8, 64, 64) "
        "with strides (0, 4096, 64, 1)",
    ),
    (changed("x_heads", 0), "x_heads must be 1 to 16777216; got 0"),
]
DATA_REFUSALS = [  # of what lies in memory: a GPU cannot report it
    (changed("slots", lambda t: t + 5), "slots must be below nslots = 2; got 5 at index 0"),
    (changed("slots", lambda t: t + 1), "slot 1 must have an open step; got none (cursor_begin opens it)"),
    (
        changed("cursor", lambda t: torch.full_like(t, 2**31 - 1)),
        "cursor must describe slot 0 as the cursor ops write it for width 4 and 16 rows; got position 2147483647, "
        "live 2147483647, fold 2147483647, ntokens 2147483647 and a row table that does not fit",
    ),
]


def refusals(table, marks=()):
    return [pytest.param(*row, id=row[1].split("; got")[0], marks=marks) for row in table]


@pytest.mark.parametrize("change, sentence", refusals(REFUSALS) + refusals(DATA_REFUSALS, pytest.mark.cpu_only))
def test_refusals_are_one_sentence_and_change_nothing(change, sentence):
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(3))
    before = [t.clone() for t in (layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table)]
    arguments, heads = change(layer.arguments(*layer.tokens(1, 3), int32(0)), layer.heads)
    with pytest.raises((ValueError, TypeError)) as error:
        mamba2_verify(*arguments, **heads, fold_every=4)
    assert str(error.value) == f"mamba2_verify: {sentence}"
    for old, new in zip(before, (layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table), strict=True):
        assert_bitwise(new, old)


@pytest.mark.parametrize("written, source", [("rows", "conv_bias"), ("dt_rows", "D"), ("checkpoint", "A")])
def test_parameters_within_what_is_written_are_refused(written, source):
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(3))
    buffer, parameter = getattr(layer, written), layer.parameters[source]
    layer.parameters[source] = buffer.flatten()[: parameter.numel()].copy_(parameter)
    with pytest.raises(TypeError) as error:
        layer.verify(*layer.tokens(1, 3), int32(0))
    assert str(error.value) == f"mamba2_verify: {written} must share no memory with {source}; got one that does"


def test_rows_that_overlap_dt_rows_are_refused():
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(3))
    layer.dt_rows = layer.rows[..., -layer.nheads :]
    with pytest.raises(TypeError, match="^mamba2_verify: rows must share no memory with dt_rows; got one that does$"):
        layer.verify(*layer.tokens(1, 3), int32(0))


def test_sizes_that_the_kernel_does_not_take_are_refused():
    for change, sentence in (
        (dict(dstate=24), "mamba2_verify: dstate must be a multiple of 16 up to 256; got 24"),
        (dict(dstate=8), "mamba2_verify: dstate must be a multiple of 16 up to 256; got 8"),
        (dict(nheads=6, x_heads=4), "mamba2_verify: x_heads must divide nheads = 6; got 4"),
    ):
        layer = make_layer(**change)
        layer.cursor.begin(int32(0), int32(1))
        with pytest.raises(ValueError) as error:
            layer.verify(*layer.tokens(1, 1), int32(0))
        assert str(error.value) == sentence


@pytest.mark.parametrize(
    "device, dtype, window, expected",
    [
        ("cpu", torch.bfloat16, 8, "recurrent"),
        ("cuda", torch.bfloat16, 8, "matmul"),
        ("cuda", torch.float16, 4, "matmul"),
        ("cuda", torch.float16, 16, "matmul"),
        ("cuda", torch.bfloat16, 3, "recurrent"),
        ("cuda", torch.bfloat16, 17, "recurrent"),
        ("cuda", torch.float32, 8, "recurrent"),
    ],
)
def test_a_session_has_one_algorithm(device, dtype, window, expected):
    for fold_every, width in ((1, 4), (16, 2)):
        session = Session(window, fold_every, width=width)
        assert choose_algorithm(device, dtype, session.capacity, width, fold_every) == expected


def test_many_live_rows_are_for_the_recurrence():
    """They would not fit every GPU's shared memory in the closed form."""
    for fold_every, expected in ((17, "matmul"), (18, "recurrent"), (64, "recurrent")):
        session = Session(16, fold_every)
        assert choose_algorithm("cuda", torch.bfloat16, session.capacity, 4, fold_every) == expected


@pytest.mark.cpu_only
def test_algorithms_that_are_none_or_not_the_cpus_are_refused():
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(1))
    for algorithm, sentence in (
        ("matmul", "mamba2_verify: algorithm must be recurrent on a CPU; got matmul"),
        ("fast", "mamba2_verify: algorithm must be auto, recurrent or matmul; got 'fast'"),
        (1, "mamba2_verify: algorithm must be auto, recurrent or matmul; got 1"),
    ):
        layer.algorithm = algorithm
        with pytest.raises(ValueError) as error:
            layer.verify(*layer.tokens(1, 1), int32(0))
        assert str(error.value) == sentence


@pytest.mark.cpu_only
def test_two_sequences_on_one_slot_are_refused():
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(1))
    with pytest.raises(ValueError, match=r"^mamba2_verify: slots must name a slot at most once; got 0 twice$"):
        layer.verify(*layer.tokens(2, 1), int32(0, 0))


@pytest.mark.cpu_only
@pytest.mark.parametrize("parents, got", [((-1, 1, 0), "1 for token 1"), ((-2, 0, 1), "-2 for token 0")])
def test_parents_that_are_no_tree_are_refused(parents, got):
    layer = make_layer()
    layer.cursor.begin(int32(1), int32(3))
    before = [t.clone() for t in (layer.checkpoint, layer.rows, layer.dt_rows)]
    with pytest.raises(ValueError) as error:
        layer.verify(*layer.tokens(1, 3), int32(1), parents=int32(*parents).view(1, 3))
    assert str(error.value) == f"mamba2_verify: parents must be -1 or an earlier token of the step; got {got} of slot 1"
    for old, new in zip(before, (layer.checkpoint, layer.rows, layer.dt_rows), strict=True):
        assert_bitwise(new, old)


@pytest.mark.cpu_only
def test_another_fold_every_than_the_cursors_is_refused():
    layer = make_layer(fold_every=3)
    for _ in range(2):
        layer.cursor.begin(int32(0), int32(4))
        xBC, dt = layer.tokens(1, 4)
        layer.verify(xBC, dt, int32(0))
        layer.cursor.commit(int32(0), int32(2))
    layer.cursor.begin(int32(0), int32(4))
    sentence = "mamba2_verify: fold_every must be the session's, which divides the token that slot 0 folds to, 3; got 2"
    with pytest.raises(ValueError) as error:
        mamba2_verify(*layer.arguments(xBC, dt, int32(0)), **layer.heads, fold_every=2)
    assert str(error.value) == sentence


@pytest.mark.cpu_only
def test_step_longer_than_the_input_is_refused():
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(4))
    with pytest.raises(ValueError, match=r"^mamba2_verify: xBC must hold the open step's 4 tokens of slot 0; got 3$"):
        layer.verify(*layer.tokens(1, 3), int32(0))
