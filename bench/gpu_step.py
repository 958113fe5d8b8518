"""Inputs of an operator that runs the SSM without the convolution, and the float64 reference of what it computes."""

import functools

import torch
from gpu_check import error_ratio
from gpu_harness import copies_for
from torch.nn.functional import softplus


def ssm_reference(state, x, step, A, B, C, D):
    """The recurrence in float64: state (batch, nheads, headdim, dstate), x (batch, ntokens, nheads, headdim),
    step = softplus(dt + dt_bias) (batch, ntokens, nheads), B, C (batch, ntokens, ngroups, dstate). Returns y and the
    list of the states after every token."""
    state, repeats = state.double(), x.shape[2] // B.shape[2]
    outs, states = [], []
    for t in range(x.shape[1]):
        B_t, C_t = (each[:, t].double().repeat_interleave(repeats, dim=1)[:, :, None, :] for each in (B, C))
        x_t, step_t = x[:, t].double(), step[:, t].double()[..., None]
        state = state * torch.exp(step_t * A.double()[:, None])[..., None] + (step_t * x_t)[..., None] * B_t
        outs.append((state * C_t).sum(-1) + D.double()[:, None] * x_t)
        states.append(state)
    return torch.stack(outs, 1), states


class Step:
    """Random inputs of one step, `slots` states of which sequence b starts from slot `stride` * b, and its checks."""

    def __init__(self, case, device, stride=1):
        shape, dtype = case.shape, getattr(torch, case.activations)
        tokens = (case.batch, case.ntokens)
        random = functools.partial(torch.randn, device=device)
        self.x = random(*tokens, shape.nheads, shape.headdim, dtype=dtype)
        self.dt = random(*tokens, shape.nheads, dtype=dtype)
        self.B, self.C = (random(*tokens, shape.ngroups, shape.dstate, dtype=dtype) for _ in range(2))
        self.A, self.D = -1 - 15 * torch.rand(shape.nheads, device=device), random(shape.nheads)
        self.dt_bias = -7 + 5 * torch.rand(shape.nheads, device=device)
        sizes = (case.batch * stride, shape.nheads, shape.headdim, shape.dstate)
        self.state = random(sizes, dtype=getattr(torch, case.checkpoint))
        self.out = torch.empty_like(self.x)
        self.stride = stride
        # One value per head, broadcast without memory: what FlashInfer and mamba_ssm ask for.
        self.wide_dt = self.dt[..., None].expand(*tokens, *sizes[1:3])
        self.wide_A = self.A[:, None, None].expand(sizes[1:])
        self.wide_D, self.wide_bias = (each[:, None].expand(sizes[1:3]) for each in (self.D, self.dt_bias))

    def check(self, launch, past=None):
        """launch() -> y; past: (x, step, B) of the rows that the first and the last sequence replay, each its own."""
        batch, ratios = len(self.x), []
        for b in sorted({0, batch - 1}):
            few = slice(b, b + 1)
            x, B, C = self.x[few], self.B[few], self.C[few]
            step = softplus(self.dt[few].double() + self.dt_bias)
            if past is not None:
                old_x, old_step, old_B = past(b)
                x, step = torch.cat([old_x, x], 1), torch.cat([old_step.double(), step], 1)
                B, C = torch.cat([old_B, B], 1), torch.cat([torch.zeros_like(old_B), C], 1)
            start = self.state[b * self.stride][None].clone()
            y, _ = ssm_reference(start, x, step, self.A, B, C, self.D)
            self.out.fill_(float("nan"))
            ratios.append(error_ratio(launch()[few], y[:, -self.x.shape[1] :], tolerance=2e-2))
        return {"y": max(ratios)}


def steps_for(case, device, states, stride=1):
    """Sets of arguments; states: how many each sequence's step touches."""
    nbytes = case.state_bytes * states
    return [Step(case, device, stride) for _ in range(copies_for(nbytes, nbytes, device))]
