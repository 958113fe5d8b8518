"""For tests/fuzz.py: mamba2_verify on slots in the middle of their lives."""

from unittest import mock

import torch
from fuzz_arguments import is_plain
from fuzz_case import FLOATING, NAN, ROUNDING, Op, require, stored
from fuzz_cursor import change_header, draw_cursor, listed_slots, unpacked

from llamba_kernels.cache import Session
from llamba_kernels.testing import make_mamba2_layer
from python_ref.mamba2_verify import mamba2_verify_ref, split_heads

HEADS = (dict(), dict(B_heads=None, C_heads=None), dict(x_heads=1), dict(x_heads=1, C_heads=None))  # None: nheads


def draw_layer(draw, refs, constants):
    """A layer and its buffers as arguments; what no step may read is NaN: free rows, checkpoints of fresh slots."""
    nslots, width, capacity = len(refs), constants["width"], refs[0].capacity
    nheads, headdim, dtype = draw.randint(1, 4), draw.size(1, 33), draw.choice(FLOATING)
    dstate = 16 * draw.choice((1, 1, 2, 3, 4, 5, 8, 16))
    heads = {name: heads or nheads for name, heads in draw.choice(HEADS).items()}
    bias = draw.random() < 0.5
    layer = make_mamba2_layer(1, nheads, headdim, dstate, **heads, dtype=dtype, bias=bias, session=Session(width=width))
    rows = torch.full((nslots, capacity, layer.conv_dim), NAN, dtype=dtype)
    dt_rows = torch.full((nslots, capacity, nheads), NAN, dtype=dtype)
    checkpoint = torch.full((nslots, nheads, headdim, dstate), NAN, dtype=draw.choice((torch.float32, *FLOATING)))
    for slot, ref in enumerate(refs):
        used = [row for row in ref.tail + ref.live if row >= 0]
        rows[slot, used], dt_rows[slot, used] = layer.tokens(len(used))
        if ref.position > len(ref.live):
            checkpoint[slot] = torch.randn(nheads, headdim, dstate) / 4
    return layer, dict(checkpoint=checkpoint, rows=rows, dt_rows=dt_rows)


def draw_mamba2_verify(draw):
    refs, cursor, slots, constants = draw_cursor(draw, is_open=True)
    layer, buffers = draw_layer(draw, refs, constants)
    batch, (_, nheads, headdim, _) = len(slots), buffers["checkpoint"].shape
    counts = [refs[slot].ntokens if slot >= 0 else 0 for slot in slots.tolist()]
    max_ntokens = max([1, *counts]) + draw.choice((0, 0, 2))
    xBC, dt = layer.tokens(batch, max_ntokens)
    for i, count in enumerate(counts):
        xBC[i, count:], dt[i, count:] = NAN, NAN
    return dict(
        xBC=xBC,
        dt=dt,
        **layer.parameters,
        **buffers,
        cursor=cursor,
        slots=slots,
        **layer.heads,
        parents=draw.maybe(draw_trees(draw, counts, max_ntokens)),
        fold_every=constants["fold_every"],
        out=draw.maybe(torch.full((batch, max_ntokens, nheads, headdim), NAN, dtype=xBC.dtype)),
    )


def draw_trees(draw, counts, max_ntokens):
    """Each token follows any earlier one, or the committed tokens; beyond the counts no token is named."""
    parents = torch.full((len(counts), max_ntokens), 2**31 - 1, dtype=torch.int32)
    for i, count in enumerate(counts):
        parents[i, :count] = torch.tensor([draw.randrange(-1, token) for token in range(count)], dtype=torch.int32)
    return parents


def drop_last_token(arguments, draw):
    """From all that have one: the longest step no longer fits."""
    given = [name for name in ("xBC", "dt", "parents", "out") if arguments[name] is not None]
    if any(not is_plain(arguments[name]) or arguments[name].dim() < 2 for name in given):
        return None
    for name in given:
        arguments[name] = arguments[name][:, :-1]
    return f"{', '.join(given)} without the last token"


def expect_mamba2_verify(out, **a):
    """See error_factors. The sums of absolute values come from the reference itself, run on absolute values."""
    xBC, checkpoint, cursor, width = a["xBC"], a["checkpoint"], a["cursor"], a["conv_weight"].shape[1]
    parents = a["parents"]
    require({xBC.dtype, checkpoint.dtype} <= set(FLOATING) and a["fold_every"] >= 1, "dtypes; fold_every is positive")
    require(parents is None or parents.dtype == torch.int32 and parents.shape == xBC.shape[:2], "parents fits xBC")
    require(cursor.shape[0] == checkpoint.shape[0] and a["slots"].shape == xBC.shape[:1], "cursor and slots fit")
    folded = torch.zeros(checkpoint.shape[0], dtype=torch.bool)
    for i, slot in listed_slots(cursor, a["slots"]):
        ref = unpacked(cursor, slot, width)
        require(0 < ref.ntokens <= xBC.shape[1], "an open step that xBC holds")
        if parents is not None:
            require(all(-1 <= p < t for t, p in enumerate(parents[i, : ref.ntokens].tolist())), "parents come before")
        folded[slot] = ref.fold > 0
    units, fp32, conv = error_factors(a)
    values, after = run_changed(mamba2_verify_ref, a, lambda part: part)
    products, products_after = run_changed(mamba2_verify_ref, a, torch.abs)
    summands, summands_after = run_changed(mamba2_verify_ref, a, lambda part: part.abs() + conv)
    state_error = units * products_after["checkpoint"] + fp32 * summands_after["checkpoint"]
    state_error += stored(after["checkpoint"], checkpoint.dtype)
    return {
        "out": (values, units * products + fp32 * summands + stored(values, xBC.dtype)),
        "checkpoint": (after["checkpoint"], state_error * folded[:, None, None, None]),
        "rows": (after["rows"], 0),
        "dt_rows": (after["dt_rows"], 0),
    }


def error_factors(a):
    """(units, fp32, conv): the error is units * products + fp32 * summands, sums of absolute values both.

    x, B and C may each be one unit of the activation dtype off (rounded to the other side), relative to the sum of
    absolute values of their products; in fp32 every token adds some roundings, and conv adds its own to each channel:
    those of its summands, which are about 2 or, if the weights are strange, an eighth of the largest possible sum. A
    16-bit state may be a unit off wherever it is rounded.
    """
    dtype, columns, width = a["rows"].dtype, a["cursor"].shape[1], a["conv_weight"].shape[1]
    inputs = max(largest(a.get("xBC")), largest(a["rows"]))
    conv = max(2, (width * largest(a["conv_weight"]) * inputs + largest(a["conv_bias"])) / 8)
    units = 3 * torch.finfo(dtype).eps
    if a["checkpoint"].dtype != torch.float32:
        units += (columns // a["fold_every"] + 1) * torch.finfo(a["checkpoint"].dtype).eps
    return units, (64 + 16 * columns) * ROUNDING, conv


def largest(tensor):
    """Of the finite absolute values."""
    if tensor is None or tensor.numel() == 0:
        return 0.0
    return tensor.double().nan_to_num(0.0, 0.0, 0.0).abs().max().item()


def run_changed(reference, arguments, change):
    """The reference's result, and its arguments afterwards; `change` is applied to x, B, C after conv, and to state."""
    a = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    absolute = change(torch.tensor(-1.0)) > 0
    if absolute:
        a["checkpoint"] = a["checkpoint"].double().abs()
        if a.get("D") is not None:
            a["D"] = a["D"].abs()
    elif a["checkpoint"].dtype == torch.float32:
        a["checkpoint"] = a["checkpoint"].double()  # the value before it is stored

    def changed_heads(*args):
        return [change(part) for part in split_heads(*args)]

    with mock.patch("python_ref.mamba2_verify.split_heads", changed_heads):
        return reference(**a), a


MAMBA2_VERIFY = Op(
    "mamba2_verify",
    draw_mamba2_verify,
    expect_mamba2_verify,
    ("out", "checkpoint", "rows", "dt_rows"),
    ("out",),
    any_strides=("conv_weight",),
    mutations=(change_header, drop_last_token),
)
