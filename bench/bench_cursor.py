"""The cursor's two calls per step; the torch formula is the least a torch version would launch: one indexed write."""

import pytest
import torch

from llamba_kernels.cache import Cursor, Session


@pytest.mark.parametrize("batch", [1, 64])
def bench_cursor(row, batch):
    cursor = Cursor(batch, Session(max_window=8, fold_every=4))
    slots = torch.arange(batch, dtype=torch.int32)
    ntokens, accepted = torch.full_like(slots, 4), torch.full_like(slots, 3)
    index, value = slots.long(), cursor.table[0].clone()

    def step(_):
        cursor.begin(slots, ntokens)
        cursor.commit(slots, accepted)

    def check():
        before = cursor.table[:, 0].clone()
        step(None)
        assert torch.equal(cursor.table[:, 0], before + 3)

    other = cursor.table.clone()
    row(
        f"begin + commit, {batch} slots",
        step,
        lambda _: other.index_copy_(0, index, value.expand_as(other)),
        [None],
        check,
        2 * cursor.table.nbytes,
    )
