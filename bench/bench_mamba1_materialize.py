"""mamba1_materialize of one layer, cold, against the same in torch: a replay of the live rows."""

import copy

import pytest
import torch
from harness import cold_copies

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer
from python_ref.mamba1_materialize import mamba1_materialize_ref

SLOT = torch.zeros(1, dtype=torch.int32)
SESSION = Session(max_window=4, fold_every=4)


@pytest.mark.parametrize("checkpoint_dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
def bench_mamba1_materialize(row, checkpoint_dtype):
    layer = make_mamba1_layer(1, 5120, checkpoint_dtype=checkpoint_dtype, session=SESSION)
    for accepted in (4, 3):  # a slot with three live rows, and a state
        count = torch.tensor([accepted], dtype=torch.int32)
        layer.cursor.begin(SLOT, count)
        layer.convolve(layer.raw(1, accepted), SLOT), layer.verify(layer.tokens(1, accepted), SLOT)
        layer.cursor.commit(SLOT, count)
    state, tail = layer.materialize(SLOT)

    def reference(each, compute_dtype=torch.float32):
        arguments = each.materialize_arguments(SLOT)
        return mamba1_materialize_ref(*arguments, **each.materialize_keywords, compute_dtype=compute_dtype)

    def check():
        expected = reference(layer, torch.float64)
        torch.testing.assert_close(layer.materialize(SLOT)[0].double(), expected[0], rtol=1e-4, atol=1e-4)

    live = int(layer.cursor.table[0, 1])
    row_bytes = live * sum(getattr(layer, name)[0, 0].nbytes for name in ("x_rows", "dt_rows", "B_rows"))
    row(
        f"d5120 n16, state {str(checkpoint_dtype)[6:]}, live {live}",
        lambda each: each.materialize(SLOT, state, tail),
        reference,
        cold_copies(lambda: copy.deepcopy(layer), layer.checkpoint.nbytes + layer.parameters["A"].nbytes),
        check,
        layer.checkpoint.nbytes + layer.parameters["A"].nbytes + row_bytes + state.nbytes + 2 * tail.nbytes,
    )
