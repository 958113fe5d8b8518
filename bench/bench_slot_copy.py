"""slot_copy of a whole hybrid's slot against indexed copies in torch: 24 Mamba-2 and 8 attention layers, one launch."""

import pytest
import torch

from llamba_kernels.cache import Cursor, Session
from llamba_kernels.ops import slot_copy
from python_ref.slot_copy import slot_copy_ref

SESSION = Session(max_window=4, fold_every=4)


def make_buffers(position):
    cursor = Cursor(4, SESSION)
    cursor.reset(torch.tensor([0], dtype=torch.int32), torch.tensor([position], dtype=torch.int32))
    states = []
    for _ in range(24):
        states += [
            torch.randn(4, 32, 64, 128),
            torch.randn(4, SESSION.capacity, 2304),
            torch.randn(4, SESSION.capacity, 32),
        ]
    return cursor.table, states, [torch.randn(4, 8, 1024, 64) for _ in range(16)]


@pytest.mark.parametrize("copies", [1, 3])
def bench_slot_copy(row, copies):
    cursor, states, kv = make_buffers(position=512)
    src, dst = torch.zeros(copies, dtype=torch.int32), torch.arange(1, 1 + copies, dtype=torch.int32)

    def check():
        slot_copy(cursor, states, kv, src, dst, width=4)
        for buffer in (cursor, *states):
            assert torch.equal(buffer[copies], buffer[0])
        assert all(torch.equal(buffer[copies, :, :512], buffer[0, :, :512]) for buffer in kv)

    row(
        f"slot to {copies}, 24 x h32 d64 n128, 8 x kv 8 x 64 at 512 tokens",
        lambda _: slot_copy(cursor, states, kv, src, dst, width=4),
        lambda _: slot_copy_ref(cursor, states, kv, src, dst),
        [None],
        check,
        copies * (sum(each[0].nbytes for each in states) + sum(each[0].nbytes for each in kv) // 2) * 2,
    )
