"""mamba1_materialize, and state_import of a Mamba-1 layer: against the reference, what they must not touch.

That both are exact, bit for bit, in the middle of anything, is in test_mamba1_walk.py.
"""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref
from test_mamba1_verify import GROUPED, int32, make_layer

from python_ref.mamba1_materialize import mamba1_materialize_ref
from python_ref.mamba1_verify import mamba1_verify_ref

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def walked(steps=7, **change):
    """Slots 0 and 2 some steps in, with live rows; slot 1 fresh."""
    layer = make_layer(nslots=3, fold_every=4, **GROUPED, **change)
    torch.manual_seed(0)
    for step in range(steps):
        layer.cursor.begin(int32(0, 2), int32(3, 4))
        layer.convolve(layer.raw(2, 4), int32(0, 2)), layer.verify(layer.tokens(2, 4), int32(0, 2))
        layer.cursor.commit(int32(0, 2), int32(step % 4, 3))
    return layer


def reference(layer, slots, compute=torch.float64):
    return mamba1_materialize_ref(
        *layer.materialize_arguments(slots), **layer.materialize_keywords, compute_dtype=compute
    )


@pytest.mark.parametrize("dtype, state", [(F32, F32), (BF16, F32), (F16, BF16), (F16, F16)], ids=str)
@pytest.mark.parametrize("dstate", [16, 48])
def test_values_against_fp64_reference(dtype, state, dstate):
    layer, slots = walked(dtype=dtype, checkpoint_dtype=state, dstate=dstate), int32(2, -1, 0, 1)
    before = [buffer.clone() for buffer in (*layer.buffers, layer.cursor.table)]
    state, tail = layer.materialize(slots)
    for old, new in zip(before, (*layer.buffers, layer.cursor.table), strict=True):
        assert_bitwise(new, old)
    rounded, expected_tail = reference(layer, slots, torch.float32)
    layer.checkpoint = layer.checkpoint.double()  # whose replay is not rounded
    assert_close_to_ref(state, reference(layer, slots)[0], rounded)
    assert_bitwise(tail, expected_tail)
    assert not state[[1, 3]].any() and not tail[[1, 3]].any() and bool((layer.cursor.table[[0, 2], 1] > 0).all())


def test_out_with_strides():
    layer, slots = walked(), int32(0, 2)
    expected = layer.materialize(slots)
    out = [Surrounded(torch.zeros_like(each), fill=7.0) for each in expected]
    layer.materialize(slots, *(each.inner for each in out))
    for each, value in zip(out, expected, strict=True):
        assert_bitwise(each.inner, value)
        each.assert_surroundings_untouched()


def test_reference_equals_verify_reference():
    """The state of a slot is the one that a fold of all its live rows would store."""
    layer, slots = walked(steps=3), int32(2)
    layer.checkpoint = layer.checkpoint.double()
    state, _ = reference(layer, slots)
    live = int(layer.cursor.table[2, 1])
    layer.cursor.begin(slots, int32(1))
    layer.cursor.table[2, 2] = live  # fold everything
    mamba1_verify_ref(*layer.arguments(layer.tokens(1, 1), slots), **layer.heads, fold_every=4)
    torch.testing.assert_close(layer.checkpoint[2], state[0], rtol=1e-12, atol=0)


def test_opcheck():
    layer, slots = walked(), int32(2)
    state, tail = layer.materialize(slots)
    for buffer in layer.buffers:
        buffer.nan_to_num_()
    arguments = (*layer.materialize_arguments(slots), *layer.materialize_keywords.values(), state, tail)
    torch.library.opcheck(torch.ops.llamba.mamba1_materialize.default, arguments)
