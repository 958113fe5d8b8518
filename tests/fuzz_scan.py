"""For tests/fuzz.py: selective_scan."""

import torch
from fuzz_arguments import embed
from fuzz_case import FLOATING, ROUNDING, Op, require, stored

from llamba_kernels import ops
from llamba_kernels.testing_scan import make_selective_scan_inputs
from python_ref.selective_scan import selective_scan_ref

LEAST = 2.0**-100  # far above what exp and exp2 give instead of less than 2^-126


def call_selective_scan(**arguments):
    """Always y, the final state, and the states or None."""
    return (*ops.selective_scan(**arguments, return_final_state=True), None)[:3]


def draw_selective_scan(draw):
    batch, length, B_heads, C_heads = draw.size(0, 3), draw.size(0, 65), draw.choice((1, 2, 3)), draw.choice((1, 1, 4))
    d_inner, dstate = B_heads * C_heads * draw.size(1, 17), draw.choice((1, 5, 16, 16, 17))
    gate, bias, dtype = draw.random() < 0.5, draw.random() < 0.5, draw.choice(FLOATING)
    cu_seqlens, sequences = None, batch
    if draw.random() < 0.4:
        batch, sequences = 1, draw.size(1, 5)
        inner = sorted(draw.randrange(length + 1) for _ in range(sequences - 1))
        cu_seqlens = torch.tensor([0, *inner, length], dtype=torch.int32)
    inputs = make_selective_scan_inputs(batch, length, d_inner, dstate, B_heads, C_heads, gate, bias, dtype)
    dt_softplus = draw.random() < 0.8
    if not dt_softplus:
        inputs |= {name: inputs[name].abs() / 50 for name in ("dt", "dt_bias") if inputs[name] is not None}
    return inputs | dict(
        dt_softplus=dt_softplus,
        initial_state=draw.maybe(torch.randn(sequences, d_inner, dstate)),
        cu_seqlens=cu_seqlens,
        state_every=draw.maybe(draw.choice((1, 2, 7, 64, 100))),
    )


def expect_selective_scan(x, dt, A, B, C, D, z, dt_bias, B_heads, C_heads, dt_softplus, state_every, **state):
    """Every product and sum of the formula in fp32: relative roundings of the sum of the terms' absolute values, more
    with every token and with the logarithm of what a state is decayed by.
    """
    initial_state, cu_seqlens = state["initial_state"], state["cu_seqlens"]
    require(x.dtype in FLOATING and x.dim() == 3 and B.dtype == C.dtype == x.dtype, "dtypes and dimensions")
    require(B.shape[-1] == B_heads * A.shape[1] and C.shape[-1] == C_heads * A.shape[1], "shapes of B and C")
    sequences = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    require(initial_state is None or len(initial_state) == sequences, "one initial state per sequence")
    if cu_seqlens is not None:
        require(cu_seqlens.diff().ge(0).all() and cu_seqlens[0] == 0, "cu_seqlens ascends from 0")
        require(cu_seqlens[-1] == x.shape[1] and x.shape[0] == 1, "cu_seqlens ends at the length")
    heads = dict(B_heads=B_heads, C_heads=C_heads, cu_seqlens=cu_seqlens, state_every=state_every)
    values = selective_scan_ref(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus=dt_softplus, initial_state=initial_state, **heads
    )
    raw = dt.double() if dt_bias is None else dt.double() + dt_bias.double()
    step = torch.nn.functional.softplus(raw) if dt_softplus else raw
    size = (x.double() * step).abs() / step.where(step != 0, 1)  # step times it is the term's absolute value
    positive = (size, step, A, B.abs(), C.abs(), None, None, None)
    start = None if initial_state is None else initial_state.abs()
    sums, *sizes = selective_scan_ref(*positive, dt_softplus=False, initial_state=start, **heads)
    if D is not None:
        sums = sums + (D.double() * x.double()).abs()
    if z is not None:
        sums = sums * (z.double() * torch.sigmoid(z.double())).abs()
    most = raw.abs().amax() + 8 if raw.numel() else 8
    decayed = (step.abs().sum(1).amax() * A.abs().amax()).double() if raw.numel() else 0
    factor = (8 * x.shape[1] + 64 + most * (2 + decayed)) * ROUNDING
    if (
        raw.numel() and (step.unsqueeze(-1) * A).clamp(min=0).sum(1).amax() > 40
    ):  # a state that grows beyond fp32's numbers
        factor = float("inf")
    results = {}
    for name, value, total in zip(("y", "final_state", "states"), values, (sums, *sizes), strict=True):
        if value is not None:
            dtype = x.dtype if name == "y" else torch.float32
            error = factor * total + LEAST * (1 + total) + stored(value, dtype)
            results[name] = (value, error.where(error < 2.0**100, torch.inf))
    return results


def change_bounds(arguments, draw):
    """Boundaries of sequences that descend, or leave the tokens."""
    cu_seqlens = arguments["cu_seqlens"]
    if not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.dtype != torch.int32 or cu_seqlens.numel() == 0:
        return None
    changed = cu_seqlens.clone()
    index = draw.randrange(changed.numel())
    changed.view(-1)[index] += draw.choice((-1, 1, 64, -(2**30)))
    arguments["cu_seqlens"] = embed(changed, draw)
    return f"cu_seqlens[{index}] = {changed.view(-1)[index]}"


SELECTIVE_SCAN = Op(
    "selective_scan",
    draw_selective_scan,
    expect_selective_scan,
    (),
    ("y", "final_state", "states"),
    mutations=(change_bounds,),
    function=call_selective_scan,
)
