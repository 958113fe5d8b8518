"""mamba1_verify in the steady state of decoding, layer states cold, against an eager torch step per token.

A case names the tokens of a step and how many of them every step accepts; rows then hold that many live tokens, which
the step replays and (fold_every 1) folds. The step under the clock is verified again and again without a commit: the
same rows fold each time, which changes values, not work.
"""

import copy

import pytest
import torch
from harness import cold_copies
from torch.nn.functional import silu, softplus

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer
from python_ref.mamba1_verify import mamba1_verify_ref, spread

SHAPES = {
    "mamba-2.8b": dict(d_inner=5120),
    "falcon-mamba-7b": dict(d_inner=8192),
    "8b, from attention": dict(d_inner=4096, headdim=16, x_heads=64, B_heads=64, C_heads=256),
    "mamba-130m": dict(d_inner=1536),
}
STEPS = [(1, 1, 1), (4, 3, 1), (8, 4, 1), (4, 3, 4)]  # tokens, accepted, fold_every
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]
SLOT = torch.zeros(1, dtype=torch.int32)


def steady_layer(shape, dtype, checkpoint_dtype, ntokens, accepted, fold_every):
    """A layer with an open step, some steps in, and that step's tokens."""
    session = Session(max_window=8, fold_every=fold_every)
    layer = make_mamba1_layer(1, **shape, dtype=dtype, checkpoint_dtype=checkpoint_dtype, session=session)
    count, kept = (torch.tensor([value], dtype=torch.int32) for value in (ntokens, accepted))
    tokens = layer.tokens(1, ntokens)
    for _ in range(6):
        layer.cursor.begin(SLOT, count)
        layer.verify(tokens, SLOT)
        layer.cursor.commit(SLOT, kept)
    layer.cursor.begin(SLOT, count)
    return layer, tokens


def eager_steps(layer, tokens):
    """One read-update-write step per token, as stock decoding does it."""
    p, state, outs = layer.parameters, layer.checkpoint[0], []
    for t in range(tokens["x"].shape[1]):
        x, dt, B, C, z = (each[0, t].float() for each in tokens.values())
        step = softplus(dt + p["dt_bias"])[:, None]
        state.mul_(torch.exp(step * p["A"])).add_(step * x[:, None] * spread(B, layer.heads["B_heads"], p["A"]))
        y = (state.float() * spread(C, layer.heads["C_heads"], p["A"])).sum(-1) + p["D"] * x
        outs.append((y * silu(z)).to(tokens["x"].dtype))
    return outs


@pytest.mark.parametrize("dtype, checkpoint_dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("ntokens, accepted, fold_every", STEPS)
@pytest.mark.parametrize("shape", SHAPES)
def bench_mamba1_verify(row, shape, ntokens, accepted, fold_every, dtype, checkpoint_dtype):
    layer, tokens = steady_layer(SHAPES[shape], dtype, checkpoint_dtype, ntokens, accepted, fold_every)
    live, fold = layer.cursor.table[0, 1:3].tolist()
    out = torch.empty(1, ntokens, layer.d_inner, dtype=dtype)

    def check():
        arguments = (t.clone() for t in layer.arguments(tokens, SLOT))
        reference = mamba1_verify_ref(*arguments, **layer.heads, fold_every=fold_every)
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        torch.testing.assert_close(layer.verify(tokens, SLOT).double(), reference, rtol=tolerance, atol=tolerance)

    row_elements = sum(getattr(layer, name).shape[2] for name in ("x_rows", "dt_rows", "B_rows"))
    input_bytes = sum(each.nbytes for each in tokens.values()) + layer.parameters["A"].nbytes
    row_bytes = (live + ntokens) * row_elements * out.element_size()  # live ones read, new ones stored
    state_bytes = layer.checkpoint.nbytes * (2 if fold else 1)
    dtypes = f"{str(dtype)[6:]}, state {str(checkpoint_dtype)[6:]}"
    row(
        f"{shape}, {dtypes}, {ntokens} tokens, {accepted} accepted, W {fold_every}: live {live} fold {fold}",
        lambda each: each.verify(tokens, SLOT, out=out),
        lambda each: eager_steps(each, tokens),
        cold_copies(lambda: copy.deepcopy(layer), layer.checkpoint.nbytes + layer.parameters["A"].nbytes),
        check,
        state_bytes + row_bytes + input_bytes + out.nbytes,
    )
