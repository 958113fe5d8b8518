"""For tests/fuzz.py: per operator a random valid call, and what it has to do for any arguments that it accepts.

A new operator is one Op(name, draw, expect, ...) in OPS at the end of this file.
"""

import torch
from fuzz_attention import ATTENTION_OPS
from fuzz_case import FLOATING, NAN, ROUNDING, Op, require, rows_shape, stored
from fuzz_checkpointing import CHECKPOINTING_SSU
from fuzz_cursor import CURSOR_OPS
from fuzz_dropins import DROPIN_OPS
from fuzz_mamba1 import MAMBA1_OPS
from fuzz_mamba2 import MAMBA2_VERIFY
from fuzz_rows import ROW_OPS
from fuzz_scan import SELECTIVE_SCAN
from fuzz_ssu import SSU
from fuzz_state import STATE_OPS

from llamba_kernels import ops
from llamba_kernels.testing import (
    make_gated_rms_norm_inputs,
    make_skinny_linear_inputs,
    make_speculative_accept_inputs,
)
from python_ref.gated_rms_norm import gated_rms_norm_ref
from python_ref.skinny_linear import skinny_linear_ref
from python_ref.speculative_accept import speculative_accept_ref

# ---- skinny_linear ----


def draw_skinny_linear(draw):
    shape, sizes, dtype = rows_shape(draw), (draw.size(0, 129), draw.size(0, 33)), draw.choice(FLOATING)
    x, weight, bias = make_skinny_linear_inputs(shape, *sizes, bias=draw.random() < 0.5, dtype=dtype)
    out = draw.maybe(torch.full((*shape, sizes[1]), NAN, dtype=dtype))
    return dict(x=x, weight=weight, bias=bias, out=out)


def expect_skinny_linear(x, weight, bias, out):
    """n products summed in fp32 in any order: at most n roundings of the sum of their absolute values."""
    value = skinny_linear_ref(x, weight, bias)
    size = skinny_linear_ref(x.abs(), weight.abs(), None if bias is None else bias.abs())
    return {"out": (value, (x.shape[-1] + 2) * ROUNDING * size + stored(value, x.dtype))}


# ---- gated_rms_norm ----


def draw_gated_rms_norm(draw):
    group, dtype = draw.size(1, 65), draw.choice(FLOATING)
    shape, width = rows_shape(draw), group * draw.choice((0, 1, 1, 2, 3))
    gate = draw.random() < 0.5
    x, z, weight, eps, _ = make_gated_rms_norm_inputs(shape, width, gate=gate, dtype=dtype)
    out = draw.maybe(torch.full(x.shape, NAN, dtype=dtype))
    return dict(x=x, z=z, weight=weight, eps=draw.choice((eps, 1e-6, 1.0)), group_size=group, out=out)


def expect_gated_rms_norm(x, z, weight, eps, group_size, out):
    """No cancellation anywhere: a relative error of some roundings per step and of n in the sum, and of silu's exp."""
    require(eps > 0 and x.shape[-1] % group_size == 0, "eps is positive and group_size divides the width")
    value = gated_rms_norm_ref(x, z, weight, float(eps), group_size)
    return {"out": (value, (group_size + 32) * ROUNDING * value.abs() + stored(value, x.dtype))}


# ---- speculative_accept ----


def call_speculative_accept(accepted, next_token, **arguments):
    """The pair `out` as two arguments."""
    out = None if accepted is None and next_token is None else (accepted, next_token)
    return ops.speculative_accept(**arguments, out=out)


def draw_speculative_accept(draw):
    batch, window, vocab = draw.size(0, 5), draw.size(1, 7), draw.choice((1, 2, 15, 16, 17, 33, 1023, 1024, 1025, 2049))
    sampled, dtype = draw.random() < 0.7, draw.choice(FLOATING)
    names = ("logits", "drafts", "ntokens", "draft_probs", "uniforms", "temperature")
    inputs = make_speculative_accept_inputs(max(batch, 1), window, vocab, sampled, draw.random() < 0.3, dtype)
    a = {n: v[:batch] if isinstance(v, torch.Tensor) else v for n, v in zip(names, inputs, strict=True)}
    if vocab > 2:
        a["logits"][..., draw.randrange(vocab)] = -float("inf")  # a masked token
    if not sampled:  # random drafts would never be the argmax
        best = a["logits"][:, :-1].nan_to_num().argmax(-1)
        a["drafts"] = torch.where(torch.rand(best.shape) < 0.7, best, a["drafts"])
    if sampled and draw.random() < 0.2:
        a["uniforms"] = a["uniforms"].float().clamp(max=1 - 2**-24)
    a["temperature"] = draw.choice((0.1, 0.8, 1.0, 3.0))
    given = draw.random() < 0.5
    a["accepted"] = torch.zeros(batch, dtype=torch.int32) if given else None
    a["next_token"] = torch.zeros(batch, dtype=torch.int64) if given else None
    return a


def expect_speculative_accept(logits, drafts, ntokens, draft_probs, uniforms, temperature, accepted, next_token):
    """Exact, except that a uniform within 1e-5 of a boundary may fall to either side of it (fp32 exponentials)."""
    batch, window, vocab = logits.shape
    require(0 < temperature < float("inf"), "temperature is positive and finite")
    require(draft_probs is None or draft_probs.numel() == 0 or uniforms is not None, "greedy takes no probabilities")
    require(ntokens.dtype == torch.int32 and ntokens.shape == (batch,), "ntokens is (batch) int32")
    require(drafts.dtype == torch.int64 and drafts.shape == (batch, window - 1), "drafts is (batch, window - 1) int64")
    for b, count in enumerate(ntokens.tolist()):
        require(1 <= count <= window, "ntokens is 1 to max_window")
        require(logits[b, :count].amax(-1).isfinite().all(), "every row has a finite maximum and no NaN")
        require(all(0 <= draft < vocab for draft in drafts[b, : count - 1].tolist()), "drafts are tokens")
        if uniforms is not None:
            read = torch.cat([uniforms[b, : count - 1], uniforms[b, -1:]])
            require(((read >= 0) & (read < 1)).all(), "uniforms are in [0, 1)")
    temperature = min(
        max(float(temperature), 2.0**-126), 2.0**126
    )  # the same law as beyond, and the reference stays finite
    # what q is elsewhere than at the drafts is not checked: with a NaN there any token may follow, but a token
    unknown, q = torch.zeros(batch, dtype=torch.bool), None
    if draft_probs is not None:
        q = draft_probs.nan_to_num()
        read = torch.arange(window - 1) < ntokens[:, None] - 1
        unknown = (read[..., None] & ~draft_probs.isfinite()).flatten(1).any(-1)
    outcomes = []
    for shift in (0.0, -1e-5, 1e-5) if uniforms is not None else (0.0,):
        shifted = None if uniforms is None else (uniforms.double() + shift).clamp(0, 1 - 2**-53)
        outcomes.append(speculative_accept_ref(logits, drafts, ntokens, q, shifted, temperature))
    for accept, token in (torch.ones_like(ntokens), 0), (ntokens, vocab - 1):
        outcomes.append((torch.where(unknown, accept, outcomes[0][0]), torch.where(unknown, token, outcomes[0][1])))
    return {name: between([outcome[i] for outcome in outcomes]) for i, name in enumerate(("accepted", "next_token"))}


def between(values):
    """(value, tolerance) that admits the smallest and the largest; all are equal unless a uniform is at a boundary."""
    values = torch.stack(values).double()
    least, most = values.amin(0), values.amax(0)
    return (least + most) / 2, (most - least) / 2


OPS = (
    Op("skinny_linear", draw_skinny_linear, expect_skinny_linear, ("out",), ("out",)),
    Op("gated_rms_norm", draw_gated_rms_norm, expect_gated_rms_norm, ("out",), ("out",), in_place=("x", "z")),
    Op(
        "speculative_accept",
        draw_speculative_accept,
        expect_speculative_accept,
        ("accepted", "next_token"),
        ("accepted", "next_token"),
        copied=("uniforms",),  # if float32
        function=call_speculative_accept,
    ),
    *ROW_OPS,
    *ATTENTION_OPS,
    *CURSOR_OPS,
    *MAMBA1_OPS,
    MAMBA2_VERIFY,
    SELECTIVE_SCAN,
    SSU,
    *STATE_OPS,
    *DROPIN_OPS,
    CHECKPOINTING_SSU,
)
