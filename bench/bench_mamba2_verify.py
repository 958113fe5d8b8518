"""mamba2_verify in the steady state of decoding, layer states cold, against an eager torch step per token.

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
from llamba_kernels.testing import make_mamba2_layer
from python_ref.mamba2_verify import mamba2_verify_ref, split_heads

SHAPES = {
    "smollm2-135m": dict(nheads=9, headdim=64, dstate=64, x_heads=3, B_heads=3, C_heads=9),
    "8b hybrid": dict(nheads=32, headdim=128, dstate=128, x_heads=8, B_heads=8, C_heads=32),
    "h80 d64 n128": dict(nheads=80, headdim=64, dstate=128),
}
STEPS = [(1, 1, 1), (4, 3, 1), (4, 4, 1), (8, 4, 1), (4, 3, 4)]  # tokens, accepted, fold_every
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]
SLOT = torch.zeros(1, dtype=torch.int32)


def steady_layer(shape, dtype, checkpoint_dtype, ntokens, accepted, fold_every):
    """A layer with an open step, some steps in, and that step's tokens."""
    session = Session(max_window=8, fold_every=fold_every)
    layer = make_mamba2_layer(1, **shape, dtype=dtype, checkpoint_dtype=checkpoint_dtype, session=session)
    count, kept = (torch.tensor([value], dtype=torch.int32) for value in (ntokens, accepted))
    xBC, dt = layer.tokens(1, ntokens)
    for _ in range(6):
        layer.cursor.begin(SLOT, count)
        layer.verify(xBC, dt, SLOT)
        layer.cursor.commit(SLOT, kept)
    layer.cursor.begin(SLOT, count)
    return layer, xBC, dt


def eager_steps(layer, xBC, dt):
    """One read-update-write step per token, as stock decoding does it; the conv window and the state in place."""
    p, heads, sizes = layer.parameters, layer.heads, layer.checkpoint.shape[1:]
    state, window = layer.checkpoint[0], layer.rows[0, : p["conv_weight"].shape[1]]  # any rows serve as the window
    outs = []
    for t in range(xBC.shape[1]):
        window.copy_(torch.cat([window[1:], xBC[0, t : t + 1]]))
        conv = silu((window.t() * p["conv_weight"]).sum(-1) + p["conv_bias"])
        x, B, C = (part.float() for part in split_heads(conv, *sizes, **heads))
        step = softplus(dt[0, t].float() + p["dt_bias"])
        state.mul_(torch.exp(step * p["A"])[:, None, None]).add_((step[:, None] * x)[:, :, None] * B[:, None, :])
        outs.append(((state @ C[:, :, None]).squeeze(-1) + p["D"][:, None] * x).to(xBC.dtype))
    return outs


@pytest.mark.parametrize("dtype, checkpoint_dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("ntokens, accepted, fold_every", STEPS)
@pytest.mark.parametrize("shape", SHAPES)
def bench_mamba2_verify(row, shape, ntokens, accepted, fold_every, dtype, checkpoint_dtype):
    layer, xBC, dt = steady_layer(SHAPES[shape], dtype, checkpoint_dtype, ntokens, accepted, fold_every)
    live, fold = layer.cursor.table[0, 1:3].tolist()
    out = torch.empty(1, ntokens, *layer.checkpoint.shape[1:3], dtype=dtype)

    def check():
        arguments = (t.clone() if torch.is_tensor(t) else t for t in layer.arguments(xBC, dt, SLOT))
        reference = mamba2_verify_ref(*arguments, **layer.heads, fold_every=fold_every)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(layer.verify(xBC, dt, SLOT).double(), reference, rtol=tolerance, atol=tolerance)

    row_bytes = (live + 2 * ntokens) * (layer.conv_dim + layer.nheads) * xBC.element_size()  # new tokens: read, stored
    state_bytes = layer.checkpoint.nbytes * (2 if fold else 1)
    row(
        f"{shape}, {str(dtype)[6:]}, state {str(checkpoint_dtype)[6:]}, {ntokens} tokens, {accepted} accepted, "
        f"W {fold_every}: live {live} fold {fold}",
        lambda each: each.verify(xBC, dt, SLOT, out=out),
        lambda each: eager_steps(each, xBC, dt),
        cold_copies(lambda: copy.deepcopy(layer), layer.checkpoint.nbytes),
        check,
        state_bytes + row_bytes + out.nbytes,
    )
