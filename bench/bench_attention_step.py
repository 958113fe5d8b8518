"""attention_step on a cache that comes from memory, against one masked attention of torch over the same cache.

The peer is vLLM's attention over its own paged cache of the same tokens; the last step's keys and values are stored by
each. Its schedule, made once per step for all layers, is left out.
"""

import peers
import pytest
import torch
from harness import cold_copies

from llamba_kernels.ops import attention_step
from llamba_kernels.testing import make_attention_step_inputs

SHAPES = {"8b": (32, 8, 128), "smollm2-135m": (9, 3, 64)}  # q heads, kv heads, head_dim
CASES = [("smollm2-135m", 512), ("smollm2-135m", 4096), ("8b", 4096)]
PAGE = 128  # tokens


class Paged:
    """The arguments of vLLM's operators for the step of `inputs`, its one slot's cache in pages."""

    def __init__(self, ops, inputs, context):
        q, k, v, slot = inputs["q"][0], inputs["k"][0], inputs["v"][0], int(inputs["slots"][0])
        (window, nheads, head_dim), kv_heads = q.shape, k.shape[1]
        pages = torch.zeros(-(-context // PAGE), kv_heads, 2 * PAGE, head_dim, dtype=q.dtype)
        self.ops, self.caches, self.q, self.out = ops, pages.chunk(2, dim=2), q, torch.empty_like(q)
        self.new = k, v, torch.arange(context - window, context)
        old = (
            inputs[name][slot, :, : context - window].transpose(0, 1).contiguous() for name in ("k_cache", "v_cache")
        )
        ops.cpu_attn_reshape_and_cache(*old, *self.caches, torch.arange(context - window), "vec")
        starts, lengths = (torch.tensor(values, dtype=torch.int32) for values in ([0, window], [context]))
        table = torch.arange(pages.shape[0], dtype=torch.int32)[None]
        sizes = (1, nheads, kv_heads, head_dim, lengths, q.dtype, starts, True, -1, "vec", True, None)
        schedule = ops.get_scheduler_metadata(*sizes)
        self.rest = (starts, lengths, head_dim**-0.5, True, None, -1, table, 0.0, schedule, None, None)

    def run(self):
        k, v, rows = self.new
        self.ops.cpu_attn_reshape_and_cache(k, v, *self.caches, rows, "vec")
        self.ops.cpu_attention_with_kv_cache(self.q, *self.caches, self.out, *self.rest)
        return self.out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("window", [1, 4, 8])
@pytest.mark.parametrize("shape, context", CASES)
def bench_attention_step(row, shape, context, window, dtype):
    nheads, kv_heads, head_dim = SHAPES[shape]
    inputs = make_attention_step_inputs([context - window], [window], nheads, kv_heads, head_dim, dtype=dtype)
    slot, out = int(inputs["slots"][0]), torch.empty_like(inputs["q"])
    seen = torch.ones(window, context, dtype=torch.bool).tril(context - window)
    nbytes = 2 * kv_heads * context * head_dim * dtype.itemsize
    paged = peers.vllm(lambda ops, _: Paged(ops, inputs, context))

    def copy():
        caches = {name: inputs[name].clone() for name in ("k_cache", "v_cache")}
        return inputs | caches, paged and paged[1](None)

    def formula(argument):
        given = argument[0]
        caches = [given[name][slot : slot + 1, :, :context] for name in ("k_cache", "v_cache")]
        for cache, new in zip(caches, (given["k"], given["v"]), strict=True):
            cache[:, :, context - window :] = new.transpose(1, 2)
        q = given["q"].transpose(1, 2)
        y = torch.nn.functional.scaled_dot_product_attention(q, *caches, attn_mask=seen, enable_gqa=True)
        return y.transpose(1, 2)

    def check():
        argument = copy()
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        ours = attention_step(**argument[0])
        torch.testing.assert_close(ours, formula(argument), rtol=tolerance, atol=tolerance)
        if paged:
            torch.testing.assert_close(argument[1].run(), ours[0], rtol=2e-2, atol=2e-2)

    row(
        f"{shape}, {context} tokens, window {window}, {str(dtype)[6:]}",
        lambda argument: attention_step(**argument[0], out=out),
        formula,
        cold_copies(copy, 2 * nbytes),
        check,
        nbytes,
        peer=paged and (paged[0], lambda argument: argument[1].run()),
    )
