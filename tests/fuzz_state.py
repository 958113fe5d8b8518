"""For tests/fuzz.py: what moves the state of whole slots: materialize, state_import and slot_copy."""

import torch
from fuzz_arguments import DTYPES, change_list
from fuzz_case import FLOATING, NAN, Op, require, stored
from fuzz_cursor import change_header, draw_cursor, draw_session, draw_slot, listed_slots, unpacked
from fuzz_mamba2 import draw_layer, error_factors, run_changed

from llamba_kernels import ops
from python_ref.cursor import SlotRef, cursor_reset_ref, packed_ref
from python_ref.materialize import materialize_ref, state_import_ref
from python_ref.slot_copy import slot_copy_ref

# ---- materialize ----


def call_materialize(state, tail, **arguments):
    """The pair `out` as two arguments."""
    return ops.materialize(**arguments, out=None if state is None and tail is None else (state, tail))


def draw_materialize(draw):
    refs, cursor, slots, constants = draw_cursor(draw, is_open=False)
    layer, buffers = draw_layer(draw, refs, constants)
    rows, given = buffers["rows"], draw.random() < 0.5
    state_shape, tail_shape = buffers["checkpoint"].shape[1:], (constants["width"] - 1, rows.shape[2])
    return dict(
        **{name: value for name, value in layer.parameters.items() if name != "D"},
        **buffers,
        cursor=cursor,
        slots=slots,
        **layer.heads,
        fold_every=constants["fold_every"],
        state=torch.full((len(slots), *state_shape), NAN) if given else None,
        tail=torch.full((len(slots), *tail_shape), NAN, dtype=rows.dtype) if given else None,
    )


def expect_materialize(state, tail, **a):
    """See error_factors. The tail is exact."""
    rows, checkpoint, cursor = a["rows"], a["checkpoint"], a["cursor"]
    require({rows.dtype, checkpoint.dtype} <= set(FLOATING) and a["fold_every"] >= 1, "dtypes; fold_every is positive")
    require(cursor.shape[0] == checkpoint.shape[0] == rows.shape[0], "cursor and buffers have the same slots")
    for _, slot in listed_slots(cursor, a["slots"]):
        require(unpacked(cursor, slot, a["conv_weight"].shape[1]).ntokens == 0, "no open step")
    units, fp32, conv = error_factors(a)
    (value, value_tail), _ = run_changed(materialize_ref, a, lambda part: part)
    (products, _), _ = run_changed(materialize_ref, a, torch.abs)
    (summands, _), _ = run_changed(materialize_ref, a, lambda part: part.abs() + conv)
    error = units * products + fp32 * summands + stored(value, torch.float32)
    return {"state": (value, error), "tail": (value_tail, 0)}


# ---- state_import ----


def draw_imported(draw, constants, capacity):
    """A slot that is ready for a state: nothing live, its rows in any order."""
    slot = SlotRef(constants["width"], capacity, fold_every=1, max_rollback=0)
    cursor_reset_ref(slot, draw.choice((0, 1, 2, 3, 19, 2**31 - 1)))
    order = draw.sample(range(capacity), capacity)
    slot.tail = [row if row < 0 else order[row] for row in slot.tail]
    slot.free = [order[row] for row in slot.free]
    return slot


def draw_state_import(draw):
    constants, capacity = draw_session(draw)
    nslots, width, dtype = draw.randint(1, 4), constants["width"], draw.choice(FLOATING)
    slots = draw.sample([*range(nslots), *range(-4, 0)], draw.randint(0, 4))
    refs = [
        draw_imported(draw, constants, capacity)
        if slot in slots
        else draw_slot(draw, constants, capacity, draw.random() < 0.5)
        for slot in range(nslots)
    ]
    shape, conv_dim = (draw.randint(1, 4), draw.size(1, 33), draw.size(1, 65)), draw.size(1, 129)
    state, tail = torch.randn(len(slots), *shape), torch.randn(len(slots), width - 1, conv_dim).to(dtype)
    for i, slot in enumerate(slots):  # what is not read
        position = refs[slot].position if slot >= 0 else 0
        state[i] = state[i] if position else NAN
        tail[i, : max(width - 1 - position, 0)] = NAN
    return dict(
        tail=tail,
        state=state,
        checkpoint=torch.randn(nslots, *shape).to(draw.choice(FLOATING)),
        rows=torch.randn(nslots, capacity, conv_dim).to(dtype),
        cursor=torch.tensor([packed_ref(ref) for ref in refs], dtype=torch.int32),
        slots=torch.tensor(slots, dtype=torch.int32),
    )


def expect_state_import(state, tail, checkpoint, rows, cursor, slots):
    """Exact, but for the bits of a NaN that was rounded."""
    require(tail.dtype == rows.dtype in FLOATING and state.dtype == torch.float32, "dtypes")
    require(checkpoint.dtype in FLOATING and state.shape[1:] == checkpoint.shape[1:], "state fits checkpoint")
    require(cursor.shape[0] == checkpoint.shape[0] == rows.shape[0] and tail.shape[2] == rows.shape[2], "sizes fit")
    require(slots.shape == state.shape[:1] == tail.shape[:1], "slots, state and tail have one batch")
    require(tail.shape[1] in (1, 2, 3) and cursor.shape[1] == 4 + tail.shape[1] + rows.shape[1], "a cursor of the rows")
    read = []
    for i, slot in listed_slots(cursor, slots):
        ref = unpacked(cursor, slot, tail.shape[1] + 1)
        require(ref.ntokens == 0 and not ref.live, "no open step and no live rows")
        read += [i] if ref.position else []
    state_import_ref(state, tail, checkpoint, rows, cursor, slots)
    return {"checkpoint": (checkpoint, 0.0 if state[read].isnan().any() else 0), "rows": (rows, 0)}


# ---- slot_copy ----


def draw_slot_copy(draw):
    constants, capacity = draw_session(draw)
    nslots = draw.randint(1, 5)
    order = draw.sample(range(nslots), nslots)
    dst, others = order[: draw.randrange(nslots)], order[nslots - 1 :]  # at least one is no destination
    others = [slot for slot in order if slot not in dst] or others
    pairs = [(draw.choice(others), slot) for slot in dst]
    for _ in range(draw.choice((0, 0, 1, 2))):
        pairs.insert(draw.randint(0, len(pairs)), (draw.choice((-1, -(2**31))), draw.choice((-1, -7))))
    refs = [draw_slot(draw, constants, capacity, slot not in others and draw.random() < 0.5) for slot in range(nslots)]
    cursor = torch.tensor([packed_ref(ref) for ref in refs], dtype=torch.int32)
    for slot in dst:
        if draw.random() < 0.3:
            cursor[slot] = draw.choice((-1, 7, 2**31 - 1))  # a destination may be broken
    most = max([refs[source].position for source, _ in pairs if source >= 0], default=0)
    states = [
        draw_buffer(draw, (nslots, *(draw.size(0, 5) for _ in range(draw.randrange(5)))))
        for _ in range(draw.randrange(4))
    ]
    kv = []
    if most < 100:  # a cache of the longest sequence there can be fits no machine
        tokens = most + draw.choice((0, 0, 2))
        kv = [draw_buffer(draw, (nslots, draw.size(0, 3), tokens, draw.size(0, 17))) for _ in range(draw.randrange(3))]
    src, dst = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int32) for i in range(2))
    return dict(cursor=cursor, states=states, kv=kv, src=src, dst=dst, width=constants["width"])


def draw_buffer(draw, shape):
    return (100 * torch.rand(shape)).to(draw.choice(DTYPES))


def expect_slot_copy(cursor, states, kv, src, dst, width):
    """Exact."""
    require(isinstance(states, list) and isinstance(kv, list), "lists")
    require(all(0 < buffer.dim() <= 8 and buffer.shape[0] == cursor.shape[0] for buffer in states), "states have slots")
    require(all(buffer.dim() == 4 and buffer.shape[0] == cursor.shape[0] for buffer in kv), "kv has slots")
    require(src.dtype == torch.int32 and src.shape == dst.shape, "src and dst are (batch) int32")
    targets = {slot for _, slot in listed_slots(cursor, dst)}
    for source, target in zip(src.tolist(), dst.tolist(), strict=True):
        require((source < 0) == (target < 0), "padding is on both sides")
        if source >= 0:
            require(source < cursor.shape[0] and source not in targets, "src is in range and no slot of dst")
            ref = unpacked(cursor, source, width)
            require(ref.ntokens == 0 and all(ref.position <= buffer.shape[2] for buffer in kv), "no step; kv holds it")
    slot_copy_ref(cursor, states, kv, src, dst)
    lists = {"states": states, "kv": kv}
    copied = {f"{name}[{i}]": (buffer, 0) for name, buffers in lists.items() for i, buffer in enumerate(buffers)}
    return {"cursor": (cursor, 0), **copied}


STATE_OPS = (
    Op(
        "materialize",
        draw_materialize,
        expect_materialize,
        ("state", "tail"),
        ("state", "tail"),
        any_strides=("conv_weight",),
        mutations=(change_header,),
        function=call_materialize,
    ),
    Op(
        "state_import",
        draw_state_import,
        expect_state_import,
        ("checkpoint", "rows"),
        mutations=(change_header,),
    ),
    Op(
        "slot_copy",
        draw_slot_copy,
        expect_slot_copy,
        ("cursor", "states", "kv"),
        any_strides=("states", "kv"),
        mutations=(change_header, change_list),
    ),
)
