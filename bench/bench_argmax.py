"""argmax against torch.argmax; logits are warm, as they come from the LM head."""

import peers
import pytest
import torch

from llamba_kernels.ops import argmax
from llamba_kernels.testing import make_argmax_inputs

SIZES = {"smollm2-135m": 49152, "llama 3": 128256}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("size", SIZES)
def bench_argmax(row, size, rows, dtype):
    (logits,) = make_argmax_inputs((rows,), SIZES[size], dtype)
    out = torch.empty(rows, dtype=torch.int64)

    def check():
        assert torch.equal(logits.gather(-1, argmax(logits)[:, None])[:, 0], logits.max(-1).values)  # ties: any

    row(
        f"{size} {SIZES[size]}, {rows} rows, {str(dtype)[6:]}",
        lambda _: argmax(logits, out=out),
        lambda _: logits.argmax(-1),
        [None],
        check,
        logits.nbytes,
        peer=peers.vllm(lambda ops, _: ops.greedy_argmax(logits)) if dtype == torch.float32 else None,  # all it takes
    )
