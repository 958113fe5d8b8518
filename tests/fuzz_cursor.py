"""For tests/fuzz.py: the cursor's operators, held against lists of rows (python_ref/cursor.py)."""

import torch
from fuzz_arguments import is_plain
from fuzz_case import Op, require

from python_ref.cursor import (
    SlotRef,
    cursor_begin_ref,
    cursor_commit_ref,
    cursor_reset_ref,
    cursor_rollback_ref,
    packed_ref,
)


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
    counts = [refs[slot].ntokens if slot >= 0 else 0 for slot in slots.tolist()]
    path = draw_paths(draw, counts, accepted.tolist())
    return dict(cursor=cursor, slots=slots, accepted=accepted, path=draw.maybe(path), width=constants["width"])


def draw_paths(draw, counts, accepted):
    """Ascending tokens of each step of counts; beyond the accepted ones no token is named."""
    lengths = [max(0, min(count, stay)) for count, stay in zip(counts, accepted, strict=True)]  # padding is anything
    path = torch.full((len(counts), max([0, *lengths]) + draw.choice((0, 0, 2))), 2**31 - 1, dtype=torch.int32)
    for i, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        path[i, :length] = torch.tensor(sorted(draw.sample(range(count), length)), dtype=torch.int32)
    return path


def draw_cursor_rollback(draw):
    refs, cursor, slots, constants = draw_cursor(draw, is_open=False)
    n = per_slot(draw, slots, lambda slot: draw.randint(0, min(constants["max_rollback"], len(refs[slot].live))))
    return dict(cursor=cursor, slots=slots, n=n, **constants)


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


def change_header(arguments, draw):
    """A small number for one of a slot's four, as other steps might have left it, or about as much as the table has."""
    cursor = arguments["cursor"]
    if not is_plain(cursor) or cursor.dim() != 2 or cursor.shape[0] == 0 or cursor.shape[1] < 4:
        return None
    slot, field = draw.randrange(cursor.shape[0]), draw.choice((0, 1, 2, 3, 3, 3))
    full = cursor.shape[1] - 4 - int(cursor[slot, 1])
    cursor[slot, field] = draw.choice((0, draw.randrange(cursor.shape[1]), full - draw.randrange(6)))
    return f"cursor{[slot, field]} = {cursor[slot, field].item()}"


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


def expect_cursor_commit(cursor, slots, accepted, path, width):
    require(accepted.dtype == torch.int32 and accepted.shape == slots.shape, "accepted is (batch) int32")
    for i, slot in listed_slots(cursor, slots):
        ref = unpacked(cursor, slot, width)
        require(ref.ntokens > 0 and 0 <= accepted[i] <= ref.ntokens, "an open step; accepted is 0 to its ntokens")
        tokens = None if path is None else accepted_path(path, i, slots, accepted, ref.ntokens)
        cursor_commit_ref(ref, accepted[i].item(), tokens)
        cursor[slot] = torch.tensor(packed_ref(ref))
    return {"cursor": (cursor, 0)}


def accepted_path(path, i, slots, accepted, ntokens):
    """The tokens that stay of sequence i; raises unless they are an ascending path through the step."""
    require(path.dtype == torch.int32 and path.dim() == 2 and path.shape[0] == len(slots), "path is (batch, n) int32")
    require(accepted[i] <= path.shape[1], "path holds the accepted tokens")
    tokens = path[i, : accepted[i]].tolist()
    require(tokens == sorted(set(tokens)) and set(tokens) <= set(range(ntokens)), "path ascends within the step")
    return tokens


def expect_cursor_rollback(cursor, slots, n, width, fold_every, max_rollback, max_window):
    check_session(cursor, width, fold_every, max_rollback, max_window)
    require(n.dtype == torch.int32 and n.shape == slots.shape, "n is (batch) int32")
    for i, slot in listed_slots(cursor, slots):
        ref = unpacked(cursor, slot, width, fold_every, max_rollback)
        require(ref.ntokens == 0 and 0 <= n[i] <= min(max_rollback, len(ref.live)), "no open step; n is in range")
        cursor_rollback_ref(ref, n[i].item())
        cursor[slot] = torch.tensor(packed_ref(ref))
    return {"cursor": (cursor, 0)}


CURSOR_OPS = (
    Op("cursor_reset", draw_cursor_reset, expect_cursor_reset, ("cursor",)),
    Op("cursor_begin", draw_cursor_begin, expect_cursor_begin, ("cursor",), mutations=(change_header,)),
    Op("cursor_commit", draw_cursor_commit, expect_cursor_commit, ("cursor",), mutations=(change_header,)),
    Op("cursor_rollback", draw_cursor_rollback, expect_cursor_rollback, ("cursor",), mutations=(change_header,)),
)
