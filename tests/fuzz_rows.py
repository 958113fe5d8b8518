"""For tests/fuzz.py: the operators that take every row, or every token, by itself."""

import torch
from fuzz_case import FLOATING, NAN, ROUNDING, Op, require, rows_shape, stored

from llamba_kernels.testing import make_argmax_inputs, make_rms_norm_inputs, make_rope_inputs, make_silu_mul_inputs
from python_ref.argmax import argmax_ref
from python_ref.rms_norm import rms_norm_ref
from python_ref.rope import rope_ref
from python_ref.silu_mul import silu_mul_ref

# ---- argmax ----


def draw_argmax(draw):
    shape, vocab = rows_shape(draw), draw.choice((1, 2, 15, 16, 17, 33, 1023, 1024, 1025, 2049))
    (logits,) = make_argmax_inputs(shape, vocab, draw.choice(FLOATING))
    if draw.random() < 0.3:
        logits = logits.round()  # ties
    logits[..., draw.randrange(vocab)] = draw.choice((3.0, 9.0))
    if vocab > 1:
        logits[torch.rand(logits.shape) < draw.choice((0.0, 0.1))] = -float("inf")  # masked tokens
        logits[..., draw.randrange(vocab)] = 4.0
    return dict(logits=logits, out=draw.maybe(torch.zeros(shape, dtype=torch.int64)))


def expect_argmax(logits, out):
    """Exact."""
    require(logits.dtype in FLOATING and logits.dim() <= 3 and logits.shape[-1] > 0, "dtype and shape of logits")
    require(logits.amax(-1).isfinite().all(), "every row has a finite maximum and no NaN")
    return {"out": (argmax_ref(logits), 0)}


# ---- rms_norm ----


def draw_rms_norm(draw):
    shape = draw.choice((rows_shape(draw), (draw.size(0, 3), draw.size(0, 5), draw.size(0, 3))))
    x, weight, eps, residual = make_rms_norm_inputs(
        shape, draw.size(0, 129), draw.random() < 0.5, draw.choice(FLOATING)
    )
    out = draw.maybe(torch.full(x.shape, NAN, dtype=x.dtype))
    return dict(x=x, weight=weight, eps=draw.choice((eps, 1e-6, 1.0)), residual=residual, out=out)


def expect_rms_norm(x, weight, eps, residual, out):
    """width squares summed in fp32 in any order, of which the root halves the error: width / 2 + 8 roundings."""
    require(x.dtype in FLOATING and 1 <= x.dim() <= 4 and eps > 0, "dtype and shape of x; eps is positive")
    value, after = rms_norm_ref(x, weight, float(eps), residual)
    expected = {"out": (value, (x.shape[-1] / 2 + 8) * ROUNDING * value.abs() + stored(value, x.dtype))}
    return expected if residual is None else expected | {"residual": (after, 0.0)}


# ---- rope ----


def draw_rope(draw):
    batch, ntokens, nheads, head_dim = draw.size(0, 3), draw.size(0, 5), draw.size(0, 3), draw.size(0, 129)
    rotary_dim = 2 * draw.choice((head_dim // 2, head_dim // 2, head_dim // 4, 0))
    npositions = draw.size(0, 33)
    dtype = draw.choice(FLOATING)
    x, cos, sin, positions = make_rope_inputs(batch, ntokens, nheads, head_dim, rotary_dim, max(npositions, 1), dtype)
    padding = torch.rand(positions.shape) < (draw.choice((0.0, 0.3)) if npositions else 1.0)
    positions[padding] = draw.choice((-1, -(2**31)))
    x[padding] = NAN
    return dict(
        x=x,
        cos=cos[:npositions],
        sin=sin[:npositions],
        positions=positions,
        interleaved=draw.random() < 0.5,
        out=draw.maybe(torch.full(x.shape, NAN, dtype=dtype)),
    )


def expect_rope(x, cos, sin, positions, interleaved, out):
    """Two products and their sum in fp32: 3 roundings of |a cos| + |b sin|; what is copied or zero is exact."""
    require(x.dtype in FLOATING and cos.dtype == sin.dtype == torch.float32, "dtypes")
    require(positions.dtype == torch.int32 and positions.shape == x.shape[:2], "positions is (batch, ntokens) int32")
    require(cos.shape == sin.shape and 2 * cos.shape[1] <= x.shape[3], "cos and sin are (npositions, rotary_dim / 2)")
    require((positions < cos.shape[0]).all() and isinstance(interleaved, bool), "positions are below npositions")
    value = rope_ref(x, cos, sin, positions, interleaved)
    zero = torch.zeros_like(cos)
    parts = [rope_ref(x, *tables, positions, interleaved).abs() for tables in ((cos, zero), (zero, sin))]
    tolerance = 3 * ROUNDING * sum(parts) + stored(value, x.dtype)
    tolerance[..., 2 * cos.shape[1] :] = 0
    tolerance[positions < 0] = 0
    return {"out": (value, tolerance)}


# ---- silu_mul ----


def draw_silu_mul(draw):
    dtype = draw.choice(FLOATING)
    gate, up = make_silu_mul_inputs(rows_shape(draw), draw.size(0, 129), dtype)
    gate *= draw.choice((1, 1, 20, 100))
    return dict(gate=gate, up=up, out=draw.maybe(torch.full(gate.shape, NAN, dtype=dtype)))


def expect_silu_mul(gate, up, out):
    """8 roundings of the result; below gate = -88.4, where exp ends and the result is zero, 4.2e-37 of up."""
    require(gate.dtype in FLOATING and gate.dtype == up.dtype and gate.dim() <= 3, "dtypes and shape")
    value = silu_mul_ref(gate, up)
    return {"out": (value, 8 * ROUNDING * value.abs() + 4.2e-37 * up.double().abs() + stored(value, gate.dtype))}


ROW_OPS = (
    Op("argmax", draw_argmax, expect_argmax, ("out",), ("out",), any_strides=("out",)),
    Op("rms_norm", draw_rms_norm, expect_rms_norm, ("out", "residual"), ("out",), in_place=("x",)),
    Op("rope", draw_rope, expect_rope, ("out",), ("out",), in_place=("x",)),
    Op("silu_mul", draw_silu_mul, expect_silu_mul, ("out",), ("out",), in_place=("gate", "up")),
)
