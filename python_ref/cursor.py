"""The cursor's verbs as list operations on one slot: the row lists of design, not the packed table of the op."""

from dataclasses import dataclass, field


@dataclass
class SlotRef:
    """One slot. `tail` has width-1 row ids (-1: a zero row); `live` and `free` are row ids in order."""

    width: int
    capacity: int
    fold_every: int
    max_rollback: int
    position: int = 0
    fold: int = 0
    ntokens: int = 0
    tail: list[int] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    free: list[int] = field(default_factory=list)


def cursor_reset_ref(slot: SlotRef, prompt: int = 0) -> None:
    """Fresh, or as a prefill of `prompt` tokens hands over: checkpoint, tail, live rows, then free rows, ascending."""
    checkpoint = max(0, (prompt - slot.max_rollback) // slot.fold_every * slot.fold_every)
    ids = iter(range(slot.capacity))
    real_tail = min(slot.width - 1, checkpoint)
    slot.tail = [-1] * (slot.width - 1 - real_tail) + [next(ids) for _ in range(real_tail)]
    slot.live = [next(ids) for _ in range(prompt - checkpoint)]
    slot.free = list(ids)
    slot.position, slot.fold, slot.ntokens = prompt, 0, 0


def cursor_begin_ref(slot: SlotRef, ntokens: int) -> list[int]:
    """Opens a step; returns the rows its tokens take."""
    checkpoint = slot.position - len(slot.live)
    target = (slot.position - slot.max_rollback) // slot.fold_every * slot.fold_every
    slot.fold = max(0, target - checkpoint)
    slot.ntokens = ntokens
    return slot.free[:ntokens]


def cursor_commit_ref(slot: SlotRef, accepted: int, path: list[int] | None = None) -> None:
    """Closes the step: accepted rows join the live rows, folded rows pass through the tail, the rest become free."""
    step, unused = slot.free[: slot.ntokens], slot.free[slot.ntokens :]
    stay = list(range(accepted)) if path is None else path[:accepted]
    new, rejected = [step[i] for i in stay], [row for i, row in enumerate(step) if i not in stay]
    passing = slot.tail + slot.live[: slot.fold]
    dropped, slot.tail = passing[: slot.fold], passing[slot.fold :]
    slot.live = slot.live[slot.fold :] + new
    slot.free = unused + rejected + [row for row in dropped if row >= 0]
    slot.position += accepted
    slot.fold = slot.ntokens = 0


def cursor_rollback_ref(slot: SlotRef, n: int) -> None:
    """Takes back the last n live tokens; their rows become the first free ones, in order."""
    kept = len(slot.live) - n
    slot.live, slot.free = slot.live[:kept], slot.live[kept:] + slot.free
    slot.position -= n


def packed_ref(slot: SlotRef) -> list[int]:
    """The slot as the op stores it: position, live, fold, ntokens, then the row table padded with -1."""
    table = slot.tail + slot.live + slot.free
    table += [-1] * (slot.width - 1 + slot.capacity - len(table))
    return [slot.position, len(slot.live), slot.fold, slot.ntokens, *table]
