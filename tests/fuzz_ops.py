"""For tests/fuzz.py: per operator a random valid call, and what it has to do for any arguments that it accepts.

A new operator is one Op(name, draw, expect, ...) at the end of this file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch

import python_ref.mamba2_verify
from llamba_kernels import ops
from llamba_kernels.cache import Session
from llamba_kernels.testing import (
    make_gated_rms_norm_inputs,
    make_mamba2_layer,
    make_skinny_linear_inputs,
    make_speculative_accept_inputs,
)
from python_ref.cursor import SlotRef, cursor_begin_ref, cursor_commit_ref, cursor_reset_ref, packed_ref
from python_ref.gated_rms_norm import gated_rms_norm_ref
from python_ref.skinny_linear import skinny_linear_ref
from python_ref.speculative_accept import speculative_accept_ref

FLOATING = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = 2.0**-24  # of one fp32 operation
NAN = float("nan")


@dataclass(frozen=True)
class Op:
    name: str
    draw: Callable  # draw(random) -> arguments by name, dense
    # expect(**arguments) -> {name: (value, tolerance)} of everything written, from arguments that are its own to
    # change; tolerance 0 means the same values. It raises for what the operator must not accept.
    expect: Callable
    written: tuple[str, ...]  # arguments
    returns: tuple[str, ...] = ()  # what the call returns, by the names of expect
    any_strides: tuple[str, ...] = ()  # arguments whose last stride need not be 1
    in_place: tuple[str, ...] = ()  # arguments that out may be
    function: Callable | None = None  # ops.<name> if None

    def call(self, arguments):
        result = (self.function or getattr(ops, self.name))(**arguments)
        return dict(zip(self.returns, result if len(self.returns) > 1 else (result,), strict=False))


def require(condition, rule):
    if not condition:
        raise ValueError(f"the operator's contract says: {rule}")


def stored(value, dtype):
    """The error of rounding once to dtype; below its normal numbers (fp32's, where the kernels end) an absolute one."""
    info = torch.finfo(dtype)
    return info.eps / 2 * value.abs() + max(info.eps * info.tiny, 2.0**-126)


def rows_shape(draw):
    return draw.choice(((), (draw.size(0, 33),), (draw.size(0, 3), draw.size(0, 9))))


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


# ---- the cursor ----


def draw_session(draw):
    """The four constants and a capacity that is enough for them."""
    c = dict(width=draw.randint(2, 4), fold_every=draw.randint(1, 4), max_rollback=draw.randint(0, 3))
    c["max_window"] = draw.randint(1, 5)
    needed = c["width"] - 1 + c["fold_every"] - 1 + c["max_rollback"] + 2 * c["max_window"]
    return c, needed + draw.choice((0, 0, 1, 4))


def draw_slot(draw, constants, capacity, is_open):
    """A slot after a prompt and some steps, in the middle of one if is_open."""
    constants = dict(constants)
    max_window = constants.pop("max_window")
    slot = SlotRef(**constants, capacity=capacity)
    cursor_reset_ref(slot, draw.choice((0, 0, 1, 5, 19)))
    for _ in range(draw.choice((0, 1, 4))):
        cursor_begin_ref(slot, draw.randint(1, max_window))
        cursor_commit_ref(slot, draw.randint(0, slot.ntokens))
    if slot.position > len(slot.live) and draw.random() < 0.1:
        slot.position += (2**31 - 100) // slot.fold_every * slot.fold_every
    if is_open:
        cursor_begin_ref(slot, draw.randint(1, max_window))
    return slot


def draw_cursor(draw, is_open):
    """(slots as SlotRef, cursor, slots, constants): the slots of the batch are open, or not; the others may be."""
    constants, capacity = draw_session(draw)
    nslots, batch = draw.randint(1, 4), draw.randint(0, 4)
    slots = torch.tensor(draw.sample([*range(nslots), *range(-4, 0)], batch), dtype=torch.int32)
    listed = slots.tolist()
    refs = [
        draw_slot(draw, constants, capacity, is_open if i in listed else draw.random() < 0.5) for i in range(nslots)
    ]
    cursor = torch.tensor([packed_ref(slot) for slot in refs], dtype=torch.int32)
    return refs, cursor, slots, constants


def per_slot(draw, slots, value):
    """One int32 per entry of slots; for padding anything."""
    values = [value(slot) if slot >= 0 else draw.choice((-7, 0, 2**31 - 1)) for slot in slots.tolist()]
    return torch.tensor(values, dtype=torch.int32)


def draw_cursor_reset(draw):
    _, cursor, slots, constants = draw_cursor(draw, is_open=draw.random() < 0.5)
    if draw.random() < 0.3:
        cursor = torch.randint(-(2**31), 2**31 - 1, cursor.shape).to(torch.int32)  # a reset reads nothing
    prompt = per_slot(draw, slots, lambda slot: draw.choice((0, 1, 2, 7, 100, 2**31 - 1)))
    return dict(cursor=cursor, slots=slots, prompt=draw.maybe(prompt), **constants)


def draw_cursor_begin(draw):
    _, cursor, slots, constants = draw_cursor(draw, is_open=False)
    ntokens = per_slot(draw, slots, lambda slot: draw.randint(1, constants["max_window"]))
    return dict(cursor=cursor, slots=slots, ntokens=ntokens, **constants)


def draw_cursor_commit(draw):
    refs, cursor, slots, constants = draw_cursor(draw, is_open=True)
    accepted = per_slot(draw, slots, lambda slot: draw.randint(0, refs[slot].ntokens))
    return dict(cursor=cursor, slots=slots, accepted=accepted, width=constants["width"])


def unpacked(cursor, slot, width, fold_every=1, max_rollback=0):
    """The packed slot as the reference's lists; raises unless the cursor ops could have written it."""
    position, live, fold, ntokens, *table = cursor[slot].tolist()
    capacity, tail = len(table) - (width - 1), table[: width - 1]
    require(0 <= live <= capacity and position >= live and 0 <= fold <= live and ntokens >= 0, "header fits the table")
    zero_rows = sum(row < 0 for row in tail)
    rows, rest = table[zero_rows : zero_rows + capacity], table[zero_rows + capacity :]
    require(set(table[:zero_rows] + rest) <= {-1} and sorted(rows) == list(range(capacity)), "every row occurs once")
    live_rows, free = table[width - 1 :][:live], [row for row in table[width - 1 + live :] if row >= 0]
    require(ntokens <= len(free), "an open step has its rows")
    return SlotRef(width, capacity, fold_every, max_rollback, position, fold, ntokens, list(tail), live_rows, free)


def listed_slots(cursor, slots):
    require(cursor.dtype == slots.dtype == torch.int32 and slots.dim() == 1, "cursor and slots are int32")
    used = [slot for slot in slots.tolist() if slot >= 0]
    require(len(set(used)) == len(used) and all(slot < cursor.shape[0] for slot in used), "slots are unique, in range")
    return [(i, slot) for i, slot in enumerate(slots.tolist()) if slot >= 0]


def check_session(cursor, width, fold_every, max_rollback, max_window):
    capacity = cursor.shape[1] - 4 - (width - 1)
    require(2 <= width <= 4 and fold_every >= 1 and max_rollback >= 0 and max_window >= 1, "constants in range")
    require(capacity >= width - 1 + fold_every - 1 + max_rollback + 2 * max_window, "enough rows for the session")
    return capacity


def expect_cursor_reset(cursor, slots, prompt, width, fold_every, max_rollback, max_window):
    capacity = cursor.shape[1] - 4 - (width - 1)
    if prompt is not None and len(slots):
        check_session(cursor, width, fold_every, max_rollback, max_window)
        require(prompt.dtype == torch.int32 and prompt.shape == slots.shape, "prompt is (batch) int32")
    for i, slot in listed_slots(cursor, slots):
        tokens = 0 if prompt is None else prompt[i].item()
        require(tokens >= 0, "prompt is at least 0")
        ref = SlotRef(width, capacity, fold_every, max_rollback)
        cursor_reset_ref(ref, tokens)
        cursor[slot] = torch.tensor(packed_ref(ref))
    return {"cursor": (cursor, 0)}


def expect_cursor_begin(cursor, slots, ntokens, width, fold_every, max_rollback, max_window):
    check_session(cursor, width, fold_every, max_rollback, max_window)
    require(ntokens.dtype == torch.int32 and ntokens.shape == slots.shape, "ntokens is (batch) int32")
    for i, slot in listed_slots(cursor, slots):
        ref = unpacked(cursor, slot, width, fold_every, max_rollback)
        require(ref.ntokens == 0 and 1 <= ntokens[i] <= max_window, "no open step; ntokens is 1 to max_window")
        cursor_begin_ref(ref, ntokens[i].item())
        require(len(ref.free) >= ref.ntokens and ref.position + ref.ntokens < 2**31, "there is room for the step")
        cursor[slot] = torch.tensor(packed_ref(ref))
    return {"cursor": (cursor, 0)}


def expect_cursor_commit(cursor, slots, accepted, width):
    require(accepted.dtype == torch.int32 and accepted.shape == slots.shape, "accepted is (batch) int32")
    for i, slot in listed_slots(cursor, slots):
        ref = unpacked(cursor, slot, width)
        require(ref.ntokens > 0 and 0 <= accepted[i] <= ref.ntokens, "an open step; accepted is 0 to its ntokens")
        cursor_commit_ref(ref, accepted[i].item())
        cursor[slot] = torch.tensor(packed_ref(ref))
    return {"cursor": (cursor, 0)}


# ---- mamba2_verify ----

HEADS = (dict(), dict(B_heads=None, C_heads=None), dict(x_heads=1), dict(x_heads=1, C_heads=None))  # None: nheads


def draw_mamba2_verify(draw):
    refs, cursor, slots, constants = draw_cursor(draw, is_open=True)
    nslots, batch, width, capacity = len(refs), len(slots), constants["width"], refs[0].capacity
    nheads, headdim, dtype = draw.randint(1, 4), draw.size(1, 33), draw.choice((torch.float32, torch.bfloat16))
    dstate = 16 * draw.choice((1, 1, 2, 3, 4, 5, 8, 16))
    heads = {name: heads or nheads for name, heads in draw.choice(HEADS).items()}
    bias = draw.random() < 0.5
    layer = make_mamba2_layer(1, nheads, headdim, dstate, **heads, dtype=dtype, bias=bias, session=Session(width=width))
    # what no step may read: free rows, checkpoints of fresh slots, tokens beyond ntokens
    rows = torch.full((nslots, capacity, layer.conv_dim), NAN, dtype=dtype)
    dt_rows = torch.full((nslots, capacity, nheads), NAN, dtype=dtype)
    checkpoint = torch.full((nslots, nheads, headdim, dstate), NAN)
    for slot, ref in enumerate(refs):
        used = [row for row in ref.tail + ref.live if row >= 0]
        rows[slot, used], dt_rows[slot, used] = layer.tokens(len(used))
        if ref.position > len(ref.live):
            checkpoint[slot] = torch.randn(nheads, headdim, dstate) / 4
    counts = [refs[slot].ntokens if slot >= 0 else 0 for slot in slots.tolist()]
    max_ntokens = max([1, *counts]) + draw.choice((0, 0, 2))
    xBC, dt = layer.tokens(batch, max_ntokens)
    for i, count in enumerate(counts):
        xBC[i, count:], dt[i, count:] = NAN, NAN
    return dict(
        xBC=xBC,
        dt=dt,
        **layer.parameters,
        checkpoint=checkpoint,
        rows=rows,
        dt_rows=dt_rows,
        cursor=cursor,
        slots=slots,
        **layer.heads,
        out=draw.maybe(torch.full((batch, max_ntokens, nheads, headdim), NAN, dtype=dtype)),
    )


def expect_mamba2_verify(out, **a):
    """x, B and C may each be one unit of the activation dtype off (rounded to the other side), relative to the sum of
    absolute values of their products; in fp32 every token adds some roundings, and conv adds its own, of values
    around 1, to each channel. The sums of absolute values come from the reference itself, run on absolute values.
    """
    xBC, checkpoint, cursor, width = a["xBC"], a["checkpoint"], a["cursor"], a["conv_weight"].shape[1]
    require(xBC.is_floating_point() and checkpoint.dtype == torch.float32, "dtypes")
    require(cursor.shape[0] == checkpoint.shape[0] and a["slots"].shape == xBC.shape[:1], "cursor and slots fit")
    folded = torch.zeros(checkpoint.shape[0], dtype=torch.bool)
    for _, slot in listed_slots(cursor, a["slots"]):
        ref = unpacked(cursor, slot, width)
        require(0 < ref.ntokens <= xBC.shape[1], "an open step that xBC holds")
        folded[slot] = ref.fold > 0
    values, after = run_mamba2_verify(a, lambda part: part)
    products, products_after = run_mamba2_verify(a, torch.abs)
    near_one, near_one_after = run_mamba2_verify(a, lambda part: part.abs() + 2)
    unit, fp32 = torch.finfo(xBC.dtype).eps, (64 + 16 * cursor.shape[1]) * ROUNDING
    state_error = 3 * unit * products_after["checkpoint"] + fp32 * near_one_after["checkpoint"]
    state_error += stored(after["checkpoint"], checkpoint.dtype)
    return {
        "out": (values, 3 * unit * products + fp32 * near_one + stored(values, xBC.dtype)),
        "checkpoint": (after["checkpoint"], state_error * folded[:, None, None, None]),
        "rows": (after["rows"], 0),
        "dt_rows": (after["dt_rows"], 0),
    }


def run_mamba2_verify(arguments, change):
    """The reference's result, and its arguments afterwards; `change` is applied to x, B, C after conv, and to state."""
    a = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    absolute = change(torch.tensor(-1.0)) > 0
    a["checkpoint"] = a["checkpoint"].double().abs() if absolute else a["checkpoint"].double()
    if absolute and a["D"] is not None:
        a["D"] = a["D"].abs()
    module = python_ref.mamba2_verify
    split = module.split_heads
    with mock.patch.object(module, "split_heads", lambda *args: [change(part) for part in split(*args)]):
        return module.mamba2_verify_ref(**a), a


OPS = (
    Op("skinny_linear", draw_skinny_linear, expect_skinny_linear, ("out",), ("out",)),
    Op("gated_rms_norm", draw_gated_rms_norm, expect_gated_rms_norm, ("out",), ("out",), in_place=("x", "z")),
    Op(
        "speculative_accept",
        draw_speculative_accept,
        expect_speculative_accept,
        ("accepted", "next_token"),
        ("accepted", "next_token"),
        function=call_speculative_accept,
    ),
    Op("cursor_reset", draw_cursor_reset, expect_cursor_reset, ("cursor",)),
    Op("cursor_begin", draw_cursor_begin, expect_cursor_begin, ("cursor",)),
    Op("cursor_commit", draw_cursor_commit, expect_cursor_commit, ("cursor",)),
    Op(
        "mamba2_verify",
        draw_mamba2_verify,
        expect_mamba2_verify,
        ("out", "checkpoint", "rows", "dt_rows"),
        ("out",),
        any_strides=("conv_weight",),
    ),
)
