"""materialize and state_import: against the reference, what they must not touch, what they refuse.

That both are exact, bit for bit, in the middle of anything, is in test_mamba2_walk.py.
"""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, assert_refused, sliced

from llamba_kernels import ops
from llamba_kernels.cache import Session
from llamba_kernels.testing import make_mamba2_layer
from python_ref.materialize import materialize_ref, state_import_ref

DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)]


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_layer(dtype=torch.float32, checkpoint_dtype=torch.float32, steps=7):
    """Slots 0 and 2 some steps in, with live rows; slot 1 fresh."""
    torch.manual_seed(0)
    session = Session(max_window=4, fold_every=4)
    layer = make_mamba2_layer(3, 6, 24, 48, 2, 3, 6, dtype, checkpoint_dtype, session=session)
    for step in range(steps):
        layer.cursor.begin(int32(0, 2), int32(3, 4))
        layer.verify(*layer.tokens(2, 4), int32(0, 2))
        layer.cursor.commit(int32(0, 2), int32(step % 4, 3))
    return layer


def arguments(layer, slots):
    p = layer.parameters
    parameters = (p["conv_weight"], p["conv_bias"], p["A"], p["dt_bias"])
    return (*parameters, layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table, slots)


def materialize(layer, slots, out=None):
    return ops.materialize(*arguments(layer, slots), **layer.heads, fold_every=4, out=out)


@pytest.mark.parametrize("dtype, checkpoint_dtype", DTYPES, ids=str)
def test_values_against_fp64_reference(dtype, checkpoint_dtype):
    layer, slots = make_layer(dtype, checkpoint_dtype), int32(2, -1, 0, 1)
    before = [t.clone() for t in (layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table)]
    state, tail = materialize(layer, slots)
    for old, new in zip(before, (layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table), strict=True):
        assert_bitwise(new, old)
    exact, expected_tail = materialize_ref(*arguments(layer, slots), **layer.heads, fold_every=4)
    torch_state, _ = materialize_ref(*arguments(layer, slots), **layer.heads, fold_every=4, compute_dtype=torch.float32)
    assert_close_to_ref(state, exact, torch_state)
    assert_bitwise(tail, expected_tail)
    assert not state[[1, 3]].any() and not tail[[1, 3]].any() and bool((layer.cursor.table[[0, 2], 1] > 0).all())


def test_out_with_strides():
    layer, slots = make_layer(), int32(0, 2)
    expected = materialize(layer, slots)
    out = [Surrounded(torch.zeros_like(each), fill=7.0) for each in expected]
    materialize(layer, slots, out=[each.inner for each in out])
    for each, value in zip(out, expected, strict=True):
        assert_bitwise(each.inner, value)
        each.assert_surroundings_untouched()


@pytest.mark.parametrize("dtype, checkpoint_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("position", [0, 1, 2, 9])
def test_import_equals_reference(position, dtype, checkpoint_dtype):
    """Rounded as torch rounds, the whole range of 16-bit types included; nothing but the slot is written."""
    torch.manual_seed(1)
    layer, slots = make_layer(dtype, checkpoint_dtype), int32(-1, 2)
    state = torch.randn(2, 6, 24, 48) * 2.0 ** torch.randint(-30, 16, (2, 6, 24, 48))
    tail = torch.randn(2, 3, layer.conv_dim).to(dtype)
    ops.cursor_reset(layer.cursor.table, int32(2), int32(position), width=4, max_window=4)
    expected = [layer.checkpoint.clone(), layer.rows.clone()]
    state_import_ref(state, tail, *expected, layer.cursor.table, slots)
    ops.state_import(sliced(state), sliced(tail), layer.checkpoint, layer.rows, layer.cursor.table, slots)
    assert_bitwise(layer.checkpoint, expected[0])
    assert_bitwise(layer.rows, expected[1])


def test_reference_equals_verify_reference():
    """The state of a slot is the one that a fold of all its live rows would store."""
    from python_ref.mamba2_verify import mamba2_verify_ref

    layer = make_layer(steps=3)
    layer.checkpoint = layer.checkpoint.double()
    slots = int32(2)
    state, _ = materialize_ref(*arguments(layer, slots), **layer.heads, fold_every=4)
    live = int(layer.cursor.table[2, 1])
    layer.cursor.begin(slots, int32(1))
    layer.cursor.table[2, 2] = live  # fold everything
    mamba2_verify_ref(*layer.arguments(*layer.tokens(1, 1), slots), **layer.heads, fold_every=4)
    torch.testing.assert_close(layer.checkpoint[2], state[0], rtol=1e-12, atol=0)


def test_refusals():
    layer = make_layer()
    layer.cursor.begin(int32(0), int32(2))
    sentence = (
        "materialize: slot 0 must have no open step (commit it, or reset the slot if the step failed); "
        "got one of 2 tokens"
    )
    assert_refused(ValueError, sentence, materialize, layer, int32(2, 0))
    sentence = "materialize: slots must name a slot at most once; got 2 twice"
    assert_refused(ValueError, sentence, materialize, layer, int32(2, 2))
    sentence = "materialize: state must be float32; got float64"
    out = torch.zeros(1, 6, 24, 48).double(), torch.zeros(1, 3, layer.conv_dim)
    assert_refused(TypeError, sentence, materialize, layer, int32(2), out)
    sentence = "materialize: state must share no memory with checkpoint; got one that does"
    assert_refused(TypeError, sentence, materialize, layer, int32(2), (layer.checkpoint[:1], out[1]))
    sentence = "materialize: state must share no memory with A; got one that does"
    state = torch.ones(1, 6, 24, 48)
    layer.parameters["A"] = state[0, 0, 0, :6]
    assert_refused(TypeError, sentence, materialize, layer, int32(2), (state, out[1]))
    sentence = "materialize: out must be a pair, (state, tail), or None; got Tensor"
    assert_refused(TypeError, sentence, materialize, layer, int32(2), state)
    layer.parameters["conv_weight"] = layer.parameters["conv_weight"][:, 0]
    sentence = f"materialize: conv_weight must have 2 dimensions; got shape ({layer.conv_dim},)"
    assert_refused(ValueError, sentence, materialize, layer, int32(2))

    def state_import(state, slots):
        ops.state_import(state, out[1], layer.checkpoint, layer.rows, layer.cursor.table, slots)

    before = layer.checkpoint.clone()
    sentence = (
        "state_import: slot 2 must have no open step and no live rows (cursor_reset with prompt = the state's "
        "position, fold_every 1 and max_rollback 0); got ntokens 0 and live "
    ) + str(int(layer.cursor.table[2, 1]))
    assert_refused(ValueError, sentence, state_import, torch.zeros(1, 6, 24, 48), int32(2))
    sentence = (
        "state_import: state must have shape (batch, nheads, headdim, dstate) = (1, 6, 24, 48); got (1, 6, 24, 47)"
    )
    assert_refused(ValueError, sentence, state_import, torch.zeros(1, 6, 24, 47), int32(1))
    assert_bitwise(layer.checkpoint, before)


def test_opcheck():
    layer = make_layer()
    state, tail = materialize(layer, int32(2))
    layer.checkpoint.nan_to_num_(), layer.rows.nan_to_num_(), layer.dt_rows.nan_to_num_()
    args = (*arguments(layer, int32(2)), *layer.heads.values(), 4, state, tail)
    torch.library.opcheck(torch.ops.llamba.materialize.default, args)
    ops.cursor_reset(layer.cursor.table, int32(2), int32(5), width=4, max_window=4)
    args = (state, tail, layer.checkpoint, layer.rows, layer.cursor.table, int32(2))
    torch.library.opcheck(torch.ops.llamba.state_import.default, args)
