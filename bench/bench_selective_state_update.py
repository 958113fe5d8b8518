"""selective_state_update against the same step in torch, as mamba_ssm's reference takes it; states cold."""

import pytest
import torch
from harness import cold_copies
from torch.nn.functional import silu, softplus

from llamba_kernels.ops import selective_state_update

SHAPES = {  # nheads (None: Mamba-1), headdim, dstate, ngroups
    "mamba-130m": (None, 1536, 16, 1),
    "mamba-2.8b": (None, 5120, 16, 1),
    "mamba2-2.7b": (80, 64, 128, 1),
    "bamba-9b": (128, 64, 128, 1),
}


def make(shape, batch, ntokens, dtype, state_dtype):
    nheads, headdim, dstate, ngroups = SHAPES[shape]
    heads, groups = ([], []) if nheads is None else ([nheads], [ngroups])
    tokens = [batch] if ntokens == 1 else [batch, ntokens]
    tied = nheads is not None
    dt = torch.randn(*tokens, *heads, 1 if tied else headdim).to(dtype)
    A = -1 - torch.rand(*heads, 1 if tied else headdim, 1 if tied else dstate)
    D, dt_bias = (torch.rand(*heads, 1 if tied else headdim) - shift for shift in (0, 4))
    x = torch.randn(*tokens, *heads, headdim).to(dtype)
    return dict(
        state=torch.randn(batch, *heads, headdim, dstate).to(state_dtype),
        x=x,
        dt=dt.expand(x.shape),
        A=A.expand(*heads, headdim, dstate),
        B=torch.randn(*tokens, *groups, dstate).to(dtype),
        C=torch.randn(*tokens, *groups, dstate).to(dtype),
        D=D.expand(*heads, headdim),
        z=None if tied else torch.randn_like(x),
        dt_bias=dt_bias.expand(*heads, headdim),
        dt_softplus=True,
    )


def eager(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus):
    """One token after the other in fp32, the state rounded once, in place."""
    outs, new = [], state
    for each in [None] if x.dim() < state.dim() else range(x.shape[1]):
        at = [t if each is None or t is None else t[:, each] for t in (x, dt, B, C, z)]
        x_t, dt_t, B_t, C_t, z_t = (None if t is None else t.float() for t in at)
        if state.dim() == 4:
            B_t, C_t = (t.repeat_interleave(state.shape[1] // t.shape[1], 1) for t in (B_t, C_t))
        step = softplus(dt_t + dt_bias)
        new = torch.exp(step[..., None] * A) * new + (step * x_t)[..., None] * B_t[..., None, :]
        y = (new @ C_t[..., None]).squeeze(-1) + D * x_t
        outs.append((y if z_t is None else y * silu(z_t)).to(x.dtype))
    state.copy_(new)
    return outs[0] if len(outs) == 1 else torch.stack(outs, 1)


@pytest.mark.parametrize(
    "dtype, state_dtype",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
    ids=lambda dtype: str(dtype)[6:],
)
@pytest.mark.parametrize("batch, ntokens", [(1, 1), (1, 4), (8, 1)])
@pytest.mark.parametrize("shape", SHAPES)
def bench_selective_state_update(row, shape, batch, ntokens, dtype, state_dtype):
    inputs = make(shape, batch, ntokens, dtype, state_dtype)
    out = torch.empty_like(inputs["x"])

    def check():
        expected = eager(**inputs | {"state": inputs["state"].clone()})
        tolerance = 1e-4 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(selective_state_update(**inputs), expected, rtol=tolerance, atol=tolerance)

    tensors = [inputs["x"], inputs["B"], inputs["C"], out, *([] if inputs["z"] is None else [inputs["z"]])]
    full_A = inputs["A"].nbytes if inputs["A"].stride(-1) else 0
    nbytes = 2 * inputs["state"].nbytes + full_A + sum(tensor.nbytes for tensor in tensors)
    row(
        f"{shape}, batch {batch}, {ntokens} tokens, {str(dtype)[6:]}, state {str(state_dtype)[6:]}",
        lambda inputs: selective_state_update(**inputs, out=out),
        lambda inputs: eager(**inputs),
        cold_copies(lambda: make(shape, batch, ntokens, dtype, state_dtype), nbytes)[:128],
        check,
        nbytes,
    )
