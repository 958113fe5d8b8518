"""materialize and state_import of one layer, cold, against the same in torch: a replay of the live rows, and copies."""

import copy

import pytest
import torch
from harness import cold_copies

from llamba_kernels import ops
from llamba_kernels.cache import Session
from llamba_kernels.testing import make_mamba2_layer
from python_ref.materialize import materialize_ref, state_import_ref

SLOT = torch.zeros(1, dtype=torch.int32)
SESSION = Session(max_window=4, fold_every=4)


def make_layer(checkpoint_dtype):
    """A slot with three live rows."""
    layer = make_mamba2_layer(1, 80, 64, 128, checkpoint_dtype=checkpoint_dtype, session=SESSION)
    for accepted in (4, 3):
        layer.cursor.begin(SLOT, torch.tensor([4], dtype=torch.int32))
        layer.verify(*layer.tokens(1, 4), SLOT)
        layer.cursor.commit(SLOT, torch.tensor([accepted], dtype=torch.int32))
    layer.cursor.begin(SLOT, torch.tensor([1], dtype=torch.int32))
    layer.verify(*layer.tokens(1, 1), SLOT)
    layer.cursor.commit(SLOT, torch.tensor([0], dtype=torch.int32))
    assert layer.cursor.table[0, :2].tolist() == [7, 3]
    return layer


def arguments(layer):
    p = layer.parameters
    parameters = (p["conv_weight"], p["conv_bias"], p["A"], p["dt_bias"])
    return (*parameters, layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table, SLOT)


@pytest.mark.parametrize("checkpoint_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_materialize(row, checkpoint_dtype):
    layer = make_layer(checkpoint_dtype)
    options = {**layer.heads, "fold_every": 4}
    out = ops.materialize(*arguments(layer), **options)

    def check():
        expected, _ = materialize_ref(*arguments(layer), **options)
        assert (out[0] - expected).abs().max() <= 1e-5 * expected.abs().max()

    row(
        f"materialize h80 d64 n128, {str(checkpoint_dtype)[6:]} checkpoint, 3 live rows",
        lambda each: ops.materialize(*arguments(each), **options, out=out),
        lambda each: materialize_ref(*arguments(each), **options, compute_dtype=torch.float32),
        cold_copies(lambda: copy.deepcopy(layer), layer.checkpoint.nbytes),
        check,
        layer.checkpoint.nbytes + out[0].nbytes,
    )


@pytest.mark.parametrize("checkpoint_dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def bench_state_import(row, checkpoint_dtype):
    layer = make_layer(checkpoint_dtype)
    state, tail = ops.materialize(*arguments(layer), **layer.heads, fold_every=4)
    position = layer.cursor.table[:, 0].clone()
    ops.cursor_reset(layer.cursor.table, SLOT, position, width=4, max_window=4)

    def put(each, function):
        function(state, tail, each.checkpoint, each.rows, each.cursor.table, SLOT)

    def check():
        expected = copy.deepcopy(layer)
        put(layer, ops.state_import)
        put(expected, state_import_ref)
        assert torch.equal(layer.checkpoint, expected.checkpoint)

    row(
        f"state_import h80 d64 n128, {str(checkpoint_dtype)[6:]} checkpoint",
        lambda each: put(each, ops.state_import),
        lambda each: put(each, state_import_ref),
        cold_copies(lambda: copy.deepcopy(layer), layer.checkpoint.nbytes),
        check,
        layer.checkpoint.nbytes + state.nbytes,
    )
