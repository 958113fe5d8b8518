"""For tests/fuzz.py: conv1d_verify, mamba1_verify and mamba1_materialize on slots in the middle of their lives."""

import torch
from fuzz_arguments import is_plain
from fuzz_case import FLOATING, NAN, ROUNDING, Op, require, stored
from fuzz_cursor import change_header, draw_cursor, listed_slots, unpacked
from fuzz_mamba2 import draw_trees

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer
from python_ref.conv1d_verify import conv1d_verify_ref
from python_ref.mamba1_materialize import mamba1_materialize_ref
from python_ref.mamba1_verify import mamba1_verify_ref

NEW_TOKENS = ("x", "dt", "B", "C", "z", "parents", "out")


def draw_layer(draw, is_open):
    """A layer with its buffers, and the rest by name; what no step may read is NaN: free rows, fresh checkpoints."""
    refs, cursor, slots, constants = draw_cursor(draw, is_open)
    headdim, x_heads, repeats = draw.size(1, 33), draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2, 4))
    d_inner = headdim * x_heads * repeats
    divisors = [heads for heads in range(1, d_inner + 1) if d_inner % heads == 0]
    heads = {f"{name}_heads": draw.choice((1, 1, x_heads, draw.choice(divisors))) for name in ("B", "C")}
    types = dict(dtype=draw.choice(FLOATING), checkpoint_dtype=draw.choice((torch.float32, *FLOATING)))
    shape, dstate = dict(x_heads=x_heads, headdim=headdim, **heads), 16 * draw.choice((1, 1, 1, 2, 3, 4))
    session = Session(width=constants["width"])
    flags = dict(bias=draw.random() < 0.5, gate=draw.random() < 0.5)
    layer = make_mamba1_layer(len(refs), d_inner, dstate, **shape, **types, **flags, session=session)
    for name in ("rows", "x_rows", "dt_rows", "B_rows"):
        width = getattr(layer, name).shape[2]
        rows = torch.full((len(refs), refs[0].capacity, width), NAN, dtype=types["dtype"])
        for slot, ref in enumerate(refs):
            used = [row for row in (ref.tail if name == "rows" else []) + ref.live if row >= 0]
            rows[slot, used] = torch.randn(len(used), width).to(rows.dtype)
        setattr(layer, name, rows)
    for slot, ref in enumerate(refs):
        if ref.position > len(ref.live):
            layer.checkpoint[slot] = torch.randn(d_inner, dstate) / 4
    counts = [refs[slot].ntokens if slot >= 0 else 0 for slot in slots.tolist()]
    return layer, cursor, slots, counts, constants["fold_every"]


def poisoned(tokens, counts):
    for i, count in enumerate(counts):
        tokens[i, count:] = NAN
    return tokens


def draw_rest(draw, layer, counts, max_ntokens):
    out = torch.full((len(counts), max_ntokens, layer.d_inner), NAN, dtype=layer.rows.dtype)
    return dict(parents=draw.maybe(draw_trees(draw, counts, max_ntokens)), out=draw.maybe(out))


def draw_conv1d_verify(draw):
    layer, cursor, slots, counts, _ = draw_layer(draw, is_open=True)
    max_ntokens = max([1, *counts]) + draw.choice((0, 0, 2))
    return dict(
        x=poisoned(layer.raw(len(counts), max_ntokens), counts),
        **layer.conv,
        rows=layer.rows,
        cursor=cursor,
        slots=slots,
        x_heads=layer.x_heads,
        headdim=layer.headdim,
        **draw_rest(draw, layer, counts, max_ntokens),
    )


def draw_mamba1_verify(draw):
    layer, cursor, slots, counts, fold_every = draw_layer(draw, is_open=True)
    max_ntokens = max([1, *counts]) + draw.choice((0, 0, 2))
    tokens = layer.tokens(len(counts), max_ntokens)
    return dict(
        **{name: None if each is None else poisoned(each, counts) for name, each in tokens.items()},
        **layer.parameters,
        **{name: getattr(layer, name) for name in ("checkpoint", "x_rows", "dt_rows", "B_rows")},
        cursor=cursor,
        slots=slots,
        **layer.heads,
        fold_every=fold_every,
        **draw_rest(draw, layer, counts, max_ntokens),
    )


def draw_mamba1_materialize(draw):
    layer, cursor, slots, _, fold_every = draw_layer(draw, is_open=False)
    state, tail = (len(slots), *layer.checkpoint.shape[1:]), (len(slots), layer.cursor.session.width - 1)
    return dict(
        A=layer.parameters["A"],
        dt_bias=layer.parameters["dt_bias"],
        **{name: getattr(layer, name) for name in layer.BUFFERS},
        cursor=cursor,
        slots=slots,
        B_heads=layer.heads["B_heads"],
        fold_every=fold_every,
        state=draw.maybe(torch.full(state, NAN)),
        tail=draw.maybe(torch.full((*tail, layer.rows.shape[2]), NAN, dtype=layer.rows.dtype)),
    )


def drop_last_token(arguments, draw):
    """From all that have one: the longest step no longer fits."""
    given = [name for name in NEW_TOKENS if arguments.get(name) is not None]
    if any(not is_plain(arguments[name]) or arguments[name].dim() < 2 for name in given):
        return None
    for name in given:
        arguments[name] = arguments[name][:, :-1]
    return f"{', '.join(given)} without the last token"


def require_open_steps(a, nslots, width):
    x, parents = a["x"], a["parents"]
    require(a["cursor"].shape[0] == nslots and a["slots"].shape == x.shape[:1], "cursor and slots fit")
    require(parents is None or parents.dtype == torch.int32 and parents.shape == x.shape[:2], "parents fits x")
    folded = torch.zeros(nslots, dtype=torch.bool)
    for i, slot in listed_slots(a["cursor"], a["slots"]):
        ref = unpacked(a["cursor"], slot, width)
        require(0 < ref.ntokens <= x.shape[1], "an open step that x holds")
        if parents is not None:
            require(all(-1 <= p < t for t, p in enumerate(parents[i, : ref.ntokens].tolist())), "parents come before")
        folded[slot] = ref.fold > 0
    return folded


def expect_conv1d_verify(out, **a):
    """A few roundings of the sum of absolute values, which silu at most carries on, and of its exponential."""
    width = a["conv_weight"].shape[1]
    require(a["x"].dtype in FLOATING, "dtypes")
    require_open_steps(a, a["rows"].shape[0], width)
    arguments = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in a.items()}
    sizes = ("x", "rows", "conv_weight", "conv_bias")
    largest = {name: None if a[name] is None else a[name].double().abs() for name in sizes}
    values, summands = conv1d_verify_ref(**arguments), conv1d_verify_ref(**a | largest)  # silu(s) > s / 2 for s > 0
    error = ROUNDING * (4 * (width + 2) * (summands + 1) + 32 * values.abs())
    return {"out": (values, error + stored(values, a["x"].dtype)), "rows": (arguments["rows"], 0)}


def expect_mamba1_verify(out, **a):
    """Roundings of the sums of absolute values, and some units of a 16-bit state; see run_absolute."""
    x, checkpoint = a["x"], a["checkpoint"]
    width = a["cursor"].shape[1] - 4 - a["x_rows"].shape[1] + 1
    require({x.dtype, checkpoint.dtype} <= set(FLOATING) and a["fold_every"] >= 1, "dtypes; fold_every is positive")
    folded = require_open_steps(a, checkpoint.shape[0], width)
    factor = error_factor(a)
    values, after = run(mamba1_verify_ref, a)
    absolute, absolute_after = run_absolute(mamba1_verify_ref, a | {"z": None})
    if a["z"] is not None:
        absolute = absolute * torch.nn.functional.silu(a["z"].double()).abs()
    state_error = factor * absolute_after["checkpoint"] + stored(after["checkpoint"], checkpoint.dtype)
    return {
        "out": (values, factor * absolute + stored(values, x.dtype)),
        "checkpoint": (after["checkpoint"], state_error * folded[:, None, None]),
        **{name: (after[name], 0) for name in ("x_rows", "dt_rows", "B_rows")},
    }


def expect_mamba1_materialize(state, tail, **a):
    """As mamba1_verify's state. The tail is exact."""
    rows, checkpoint, cursor = a["rows"], a["checkpoint"], a["cursor"]
    require({rows.dtype, checkpoint.dtype} <= set(FLOATING) and a["fold_every"] >= 1, "dtypes; fold_every is positive")
    require(cursor.shape[0] == checkpoint.shape[0] == rows.shape[0], "cursor and buffers have the same slots")
    for _, slot in listed_slots(cursor, a["slots"]):
        require(unpacked(cursor, slot, cursor.shape[1] - 3 - rows.shape[1]).ntokens == 0, "no open step")
    (value, value_tail), _ = run(mamba1_materialize_ref, a)
    (absolute, _), _ = run_absolute(mamba1_materialize_ref, a)
    return {"state": (value, error_factor(a) * absolute + stored(value, torch.float32)), "tail": (value_tail, 0)}


def error_factor(a):
    """Of the sums of absolute values: per token some roundings, 2 |dt A| of them in the decay, which is 0 beyond 88."""
    factor = (256 + 32 * a["cursor"].shape[1]) * ROUNDING
    if a["checkpoint"].dtype != torch.float32:
        factor += (a["cursor"].shape[1] // a["fold_every"] + 1) * torch.finfo(a["checkpoint"].dtype).eps
    return factor


def run(reference, arguments):
    """The reference's result, and its arguments afterwards."""
    a = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    if a["checkpoint"].dtype == torch.float32:
        a["checkpoint"] = a["checkpoint"].double()  # the value before it is stored
    return reference(**a), a


def run_absolute(reference, arguments):
    """The same on absolute values of all that is multiplied and added, but for dt and A."""
    changed = {name: arguments[name].abs() for name in ("x", "B", "C", "x_rows", "B_rows") if name in arguments}
    if arguments.get("D") is not None:
        changed["D"] = arguments["D"].abs()
    return run(reference, arguments | changed | {"checkpoint": arguments["checkpoint"].double().abs()})


MAMBA1_OPS = (
    Op(
        "conv1d_verify",
        draw_conv1d_verify,
        expect_conv1d_verify,
        ("out", "rows"),
        ("out",),
        any_strides=("conv_weight",),
        mutations=(change_header, drop_last_token),
    ),
    Op(
        "mamba1_verify",
        draw_mamba1_verify,
        expect_mamba1_verify,
        ("out", "checkpoint", "x_rows", "dt_rows", "B_rows"),
        ("out",),
        mutations=(change_header, drop_last_token),
    ),
    Op(
        "mamba1_materialize",
        draw_mamba1_materialize,
        expect_mamba1_materialize,
        ("state", "tail"),
        ("state", "tail"),
        mutations=(change_header,),
    ),
)
