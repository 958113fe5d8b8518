"""The cursor ops: the worked trace, random walks against list operations, the protocol."""

import random

import pytest
import torch

from llamba_kernels import ops
from llamba_kernels.cache import Cursor, Session
from python_ref.cursor import (
    SlotRef,
    cursor_begin_ref,
    cursor_commit_ref,
    cursor_reset_ref,
    cursor_rollback_ref,
    packed_ref,
)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def lists(cursor, slot=0):
    """Tail, live rows and free rows of a slot, and its position and fold."""
    row = cursor.table[slot].tolist()
    position, live, fold, table, tail = row[0], row[1], row[2], row[4:], cursor.session.width - 1
    free = [entry for entry in table[tail + live :] if entry >= 0]
    return {"position": position, "fold": fold, "tail": table[:tail], "live": table[tail : tail + live], "free": free}


def new_rows(cursor, ntokens, slot=0):
    return lists(cursor, slot)["free"][:ntokens]


def test_worked_trace():
    """The trace that the design spells out: width 4, W 4, windows of 5; a prompt of 2, then accept 5, 1, 3."""
    cursor = Cursor(1, Session(max_window=5, fold_every=4, max_rollback=0, width=4))
    slot = int32(0)
    cursor.reset(slot, int32(2))
    state = lists(cursor)
    assert (state["live"], state["position"], state["tail"]) == ([0, 1], 2, [-1, -1, -1])

    cursor.begin(slot, int32(5))
    assert lists(cursor)["fold"] == 0 and new_rows(cursor, 5) == [2, 3, 4, 5, 6]
    cursor.commit(slot, int32(5))
    assert (lists(cursor)["live"], lists(cursor)["position"]) == ([0, 1, 2, 3, 4, 5, 6], 7)

    cursor.begin(slot, int32(5))
    assert lists(cursor)["fold"] == 4 and new_rows(cursor, 5) == [7, 8, 9, 10, 11]
    cursor.commit(slot, int32(1))
    state = lists(cursor)
    assert (state["tail"], state["live"], state["position"]) == ([1, 2, 3], [4, 5, 6, 7], 8)

    cursor.begin(slot, int32(5))
    assert lists(cursor)["fold"] == 4 and new_rows(cursor, 5) == [12, 13, 14, 15, 8]
    cursor.commit(slot, int32(3))
    state = lists(cursor)
    assert (state["tail"], state["live"], state["position"]) == ([5, 6, 7], [12, 13, 14], 11)

    cursor.begin(slot, int32(5))
    assert lists(cursor)["fold"] == 0


def test_prefill_handover():
    """P 103, W 4, max_rollback 0: state 100, tail 97-99, live 100-102, in rows numbered upwards."""
    cursor = Cursor(1, Session(max_window=4, fold_every=4, max_rollback=0, width=4))
    cursor.reset(int32(0), int32(103))
    state = lists(cursor)
    assert (state["position"], state["tail"], state["live"]) == (103, [0, 1, 2], [3, 4, 5])
    assert cursor.session.fold_point(103) == 100


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize(
    "fold_every, max_rollback, max_window", [(1, 0, 1), (1, 0, 8), (4, 0, 5), (4, 6, 5), (3, 1, 2), (16, 0, 4)]
)
def test_random_walk_equals_list_operations(width, fold_every, max_rollback, max_window):
    rng = random.Random(0)
    session = Session(max_window, fold_every, max_rollback, width)
    cursor = Cursor(3, session)
    refs = {slot: SlotRef(width, session.capacity, fold_every, max_rollback) for slot in (0, 2)}
    for slot, ref in refs.items():
        prompt = rng.randrange(0, 3 * fold_every + 4)
        cursor.reset(int32(slot), int32(prompt))
        cursor_reset_ref(ref, prompt)
    bystander = cursor.table[1].clone()
    for _ in range(120):
        batch = [0, -1, 2] if rng.random() < 0.7 else [rng.choice([0, 2])]
        ntokens = [rng.randint(1, max_window) for _ in batch]
        cursor.begin(int32(*batch), int32(*ntokens))
        for slot, count in zip(batch, ntokens, strict=True):
            if slot >= 0:
                taken = cursor_begin_ref(refs[slot], count)
                assert len(taken) == count, "the session's capacity ran out of rows"
                assert cursor.table[slot].tolist() == packed_ref(refs[slot])
        accepted = [rng.randint(0, count) for count in ntokens]
        paths = [sorted(rng.sample(range(n), a)) for n, a in zip(ntokens, accepted, strict=True)]
        if rng.random() < 0.5:  # a chain
            paths = [list(range(a)) for a in accepted]
            cursor.commit(int32(*batch), int32(*accepted))
        else:
            padded = [path + [-7] * (max_window - len(path)) for path in paths]
            cursor.commit(int32(*batch), int32(*accepted), torch.tensor(padded, dtype=torch.int32))
        for slot, path in zip(batch, paths, strict=True):
            if slot >= 0:
                cursor_commit_ref(refs[slot], len(path), path)
                assert cursor.table[slot].tolist() == packed_ref(refs[slot])
                rows = [row for row in cursor.table[slot, 4:].tolist() if row >= 0]
                assert sorted(rows) == list(range(session.capacity)), "a physical row was lost or doubled"
        if rng.random() < 0.3:
            n = [rng.randint(0, min(max_rollback, len(refs[slot].live))) if slot >= 0 else 99 for slot in batch]
            cursor.rollback(int32(*batch), int32(*n))
            for slot, count in zip(batch, n, strict=True):
                if slot >= 0:
                    cursor_rollback_ref(refs[slot], count)
                    assert cursor.table[slot].tolist() == packed_ref(refs[slot])
        if rng.random() < 0.05:
            slot = rng.choice([0, 2])
            cursor.reset(int32(slot))
            cursor_reset_ref(refs[slot])
    assert torch.equal(cursor.table[1], bystander)


@pytest.mark.cpu_only
def test_open_slot_is_refused_until_reset():
    cursor = Cursor(2, Session(max_window=4))
    cursor.begin(int32(0), int32(3))
    before = cursor.table.clone()
    with pytest.raises(
        ValueError, match=r"^cursor_begin: slot 0 must have no open step .*; got an open step of 3 tokens$"
    ):
        cursor.begin(int32(1, 0), int32(1, 1))
    assert torch.equal(cursor.table, before), "a refused call changed the cursor"
    cursor.reset(int32(0))
    cursor.begin(int32(1, 0), int32(1, 1))


SESSION = {"width": 4, "fold_every": 2, "max_rollback": 1, "max_window": 3}
REFUSALS = [
    (
        lambda c: ops.cursor_begin(c, int32(2), int32(1), **SESSION),
        "cursor_begin: slots must be below nslots = 2; got 2 at index 0",
    ),
    (
        lambda c: ops.cursor_begin(c, int32(1, 1), int32(1, 1), **SESSION),
        "cursor_begin: slots must name a slot at most once; got 1 twice",
    ),
    (
        lambda c: ops.cursor_begin(c, int32(0), int32(4), **SESSION),
        "cursor_begin: ntokens must be 1 to max_window = 3; got 4 for slot 0",
    ),
    (
        lambda c: ops.cursor_begin(c, int32(0), int32(0), **SESSION),
        "cursor_begin: ntokens must be 1 to max_window = 3; got 0 for slot 0",
    ),
    (
        lambda c: ops.cursor_begin(c, int32(0), int32(1, 2), **SESSION),
        "cursor_begin: ntokens must have shape (batch) = (1,); got (2,)",
    ),
    (
        lambda c: ops.cursor_commit(c, int32(0), int32(1), width=4),
        "cursor_commit: slot 0 must have an open step; got none (begin opens it)",
    ),
    (
        lambda c: ops.cursor_reset(c, int32(0), int32(-1), **SESSION),
        "cursor_reset: prompt must be at least 0 tokens; got -1 for slot 0",
    ),
    (lambda c: ops.cursor_reset(c, int32(0), width=5), "cursor_reset: width must be 2 to 4; got 5"),
    (
        lambda c: ops.cursor_begin(c[:, :12], int32(0), int32(1), **SESSION),
        "cursor_begin: cursor must have at least width-1 + fold_every-1 + max_rollback + 2*max_window = 11 "
        "physical rows per slot; got 5",
    ),
    (
        lambda c: ops.cursor_reset(c[:, :10], int32(0), width=4),
        "cursor_reset: cursor must have at least width + 1 = 5 physical rows per slot; got 3 "
        "(its last dimension is 4 + width - 1 + rows)",
    ),
    (lambda c: ops.cursor_reset(c, torch.tensor([0]), width=4), "cursor_reset: slots must be int32; got int64"),
    (lambda c: ops.cursor_reset(c.long(), int32(0), width=4), "cursor_reset: cursor must be int32; got int64"),
]


@pytest.mark.cpu_only
@pytest.mark.parametrize("refused, sentence", REFUSALS, ids=[sentence.split(";")[0] for _, sentence in REFUSALS])
def test_refusals_are_one_sentence_and_change_nothing(refused, sentence):
    session = Session(3, 2, 1, 4)
    cursor = Cursor(2, session)
    before = cursor.table.clone()
    with pytest.raises(TypeError if "must be int32" in sentence else ValueError) as error:
        refused(cursor.table)
    assert str(error.value) == sentence
    assert torch.equal(cursor.table, before)


OPEN_STEP_REFUSALS = [
    (lambda c: c.commit(int32(0), int32(5)), "cursor_commit: accepted must be 0 to ntokens = 4; got 5 for slot 0"),
    (
        lambda c: c.commit(int32(0), int32(3), int32(0, 2).view(1, 2)),
        "cursor_commit: path must hold the 3 accepted tokens of slot 0; got 2",
    ),
    (
        lambda c: c.commit(int32(0), int32(3), int32(0, 2, 2).view(1, 3)),
        "cursor_commit: path must hold 3 ascending tokens from 0 to 3 for slot 0; got 0 2 2",
    ),
    (
        lambda c: c.commit(int32(0), int32(2), int32(3, 4).view(1, 2)),
        "cursor_commit: path must hold 2 ascending tokens from 0 to 3 for slot 0; got 3 4",
    ),
    (
        lambda c: c.commit(int32(0), int32(1), int32(-1).view(1, 1)),
        "cursor_commit: path must hold 1 ascending tokens from 0 to 3 for slot 0; got -1",
    ),
    (
        lambda c: c.commit(int32(0), int32(1), torch.zeros(1, 0, dtype=torch.int32)),
        "cursor_commit: path must hold the 1 accepted tokens of slot 0; got 0",
    ),
    (
        lambda c: c.commit(int32(0), int32(1), int32(0)),
        "cursor_commit: path must have 2 dimensions; got shape (1,)",
    ),
    (
        lambda c: c.rollback(int32(0), int32(1)),
        "cursor_rollback: slot 0 must have no open step (commit it first); got an open step of 4 tokens",
    ),
]


@pytest.mark.cpu_only
@pytest.mark.parametrize("refused, sentence", OPEN_STEP_REFUSALS, ids=[s.split(";")[0] for _, s in OPEN_STEP_REFUSALS])
def test_refusals_of_an_open_step(refused, sentence):
    cursor = Cursor(1, Session(max_window=4, max_rollback=3))
    cursor.begin(int32(0), int32(4))
    before = cursor.table.clone()
    with pytest.raises(ValueError) as error:
        refused(cursor)
    assert str(error.value) == sentence
    assert torch.equal(cursor.table, before)
    cursor.commit(int32(0), int32(4))


@pytest.mark.cpu_only
@pytest.mark.parametrize("n, least", [(4, (3, 5)), (-1, (3, 5)), (3, (3, 2))])
def test_rollback_refuses_what_is_folded_or_beyond_the_session(n, least):
    max_rollback, live = least
    cursor = Cursor(1, Session(max_window=5, max_rollback=max_rollback))
    cursor.begin(int32(0), int32(5))
    cursor.commit(int32(0), int32(live))
    before = cursor.table.clone()
    sentence = (
        f"cursor_rollback: n must be 0 to min(max_rollback, live rows) = min({max_rollback}, {live}); "
        f"got {n} for slot 0"
    )
    with pytest.raises(ValueError) as error:
        cursor.rollback(int32(0), int32(n))
    assert str(error.value) == sentence and torch.equal(cursor.table, before)


def test_a_path_through_a_tree_keeps_its_rows_in_order():
    """Of tokens 0 to 5, root-2-5 stays; the free list is what was free, then the rejected, then what the fold drops."""
    cursor = Cursor(1, Session(max_window=6, fold_every=2))
    cursor.reset(int32(0), int32(4))  # tail 0 1 2 (tokens 1 to 3), checkpoint at 4
    cursor.begin(int32(0), int32(6))
    assert new_rows(cursor, 6) == [3, 4, 5, 6, 7, 8]
    cursor.commit(int32(0), int32(3), int32(0, 2, 5, -1, -1, -1).view(1, 6))
    state = lists(cursor)
    assert (state["tail"], state["live"], state["position"]) == ([0, 1, 2], [3, 5, 8], 7)
    assert state["free"] == [9, 10, 11, 12, 13, 14, 15, 4, 6, 7]
    cursor.begin(int32(0), int32(1))
    assert lists(cursor)["fold"] == 2
    cursor.commit(int32(0), int32(0))
    state = lists(cursor)
    assert (state["tail"], state["live"]) == ([2, 3, 5], [8])
    assert state["free"] == [10, 11, 12, 13, 14, 15, 4, 6, 7, 9, 0, 1]


def test_rolled_back_rows_are_the_first_free_ones():
    cursor = Cursor(1, Session(max_window=4, max_rollback=3))
    cursor.begin(int32(0), int32(4))
    cursor.commit(int32(0), int32(4))
    cursor.rollback(int32(0), int32(2))
    state = lists(cursor)
    assert (state["position"], state["live"], state["free"][:3]) == (2, [0, 1], [2, 3, 4])


INT_MAX = 2**31 - 1


@pytest.mark.cpu_only
@pytest.mark.parametrize("field", range(4))
@pytest.mark.parametrize("value", [INT_MAX, -INT_MAX - 1, -2, 1000])
def test_a_header_that_does_not_fit_is_refused(field, value):
    """Whatever the four numbers say, begin and commit refuse by one sentence and write nothing."""
    for verb in ("begin", "commit"):
        cursor = Cursor(2, Session(3, 2, 1, 4))
        if verb == "commit":
            cursor.begin(int32(0, 1), int32(2, 2))
        cursor.table[0, field] = value
        if (verb, field) == ("begin", 0) and value == 1000:
            continue  # a legal position
        if (verb, field) == ("commit", 0) and value == 1000:
            continue  # legal too
        before = cursor.table.clone()
        with pytest.raises(ValueError, match=rf"^cursor_{verb}: .*; got ") as error:
            getattr(cursor, verb)(int32(1, 0), int32(1, 1))
        assert "\n" not in str(error.value)
        assert torch.equal(cursor.table, before)


@pytest.mark.cpu_only
def test_tables_of_another_width_or_never_reset_are_refused():
    cursor = Cursor(1, Session(3, 2, 1, 4))
    cursor.begin(int32(0), int32(2))
    with pytest.raises(
        ValueError, match=r"^cursor_commit: cursor must describe slot 0 as the cursor ops write it for width 2"
    ):
        ops.cursor_commit(cursor.table, int32(0), int32(1), width=2)
    with pytest.raises(
        ValueError, match=r"^cursor_begin: cursor must describe slot 0 as .* and a row table that does not fit$"
    ):
        ops.cursor_begin(torch.zeros_like(cursor.table), int32(0), int32(1), **SESSION)


@pytest.mark.cpu_only
def test_an_open_step_without_rows_is_refused():
    """As many tokens as rows are left beside the live ones, some of which the conv tail has: -1 would be a row id."""
    cursor = Cursor(1, Session(3, 2, 1, 4))
    cursor.reset(int32(0), int32(9))
    live = int(cursor.table[0, 1])
    cursor.table[0, 3] = cursor.session.capacity - live
    with pytest.raises(ValueError, match=r"^cursor_commit: cursor must describe slot 0 as .* that does not fit$"):
        cursor.commit(int32(0), int32(1))
    cursor.table[0, 3], cursor.table[0, -1] = 0, 0  # an entry beyond the last row
    with pytest.raises(ValueError, match=r"^cursor_begin: cursor must describe slot 0 as .* that does not fit$"):
        cursor.begin(int32(0), int32(1))


@pytest.mark.parametrize(
    "verb, values", [("reset", "prompt"), ("begin", "ntokens"), ("commit", "accepted"), ("rollback", "n")]
)
def test_values_within_the_cursor_are_refused(verb, values):
    cursor = Cursor(1, Session(3, 2, 1, 4))
    if verb == "commit":
        cursor.begin(int32(0), int32(1))
    before = cursor.table.clone()
    sentence = f"cursor_{verb}: cursor must share no memory with {values}; got one that does"
    with pytest.raises(TypeError) as error:
        getattr(cursor, verb)(int32(0), cursor.table[0, 3:4])
    assert str(error.value) == sentence and torch.equal(cursor.table, before)


def test_strided_table_leaves_its_neighbours_alone():
    session = Session(max_window=4, fold_every=4)
    wide = torch.full((2, 3 + 4 + 3 + session.capacity + 5), 77, dtype=torch.int32)
    table = wide[:, 3:-5]
    constants = {"width": 4, "fold_every": 4, "max_rollback": 0, "max_window": 4}
    ops.cursor_reset(table, int32(0, 1), int32(9, 0), **constants)
    ops.cursor_begin(table, int32(0, 1), int32(4, 2), **constants)
    ops.cursor_commit(table, int32(0, 1), int32(2, 2), width=4)
    dense = Cursor(2, session)
    dense.reset(int32(0, 1), int32(9, 0))
    dense.begin(int32(0, 1), int32(4, 2))
    dense.commit(int32(0, 1), int32(2, 2))
    assert torch.equal(table, dense.table)
    assert bool((wide[:, :3] == 77).all()) and bool((wide[:, -5:] == 77).all())


@pytest.mark.parametrize("op", ["cursor_reset", "cursor_begin", "cursor_commit", "cursor_rollback"])
def test_opcheck(op):
    table = Cursor(2, Session(3, 2, 1, 4)).table
    if op == "cursor_commit":
        ops.cursor_begin(table, int32(0, 1), int32(2, 3), **SESSION)
        args = (table, int32(0, 1), int32(1, 2), torch.tensor([[1, 0], [0, 2]], dtype=torch.int32), 4)
    else:
        count = int32(0, 0) if op == "cursor_rollback" else int32(2, 3)
        args = (table, int32(0, 1), count, *SESSION.values())
    torch.library.opcheck(getattr(torch.ops.llamba, op).default, args)


def test_a_step_compiles_without_graph_break():
    """begin and commit through torch.compile give eager's cursor: the schema's mutation marks are right."""
    eager, compiled = (Cursor(2, Session(3, 2, 1, 4)) for _ in range(2))

    def step(table, slots, ntokens, accepted):
        ops.cursor_begin(table, slots, ntokens, **SESSION)
        ops.cursor_commit(table, slots, accepted, width=4)

    fast = torch.compile(step, fullgraph=True, backend="aot_eager")
    for accepted in ((3, 1), (2, 0), (1, 2)):
        for function, cursor in ((step, eager), (fast, compiled)):
            function(cursor.table, int32(0, 1), int32(3, 2), int32(*accepted))
    assert torch.equal(eager.table, compiled.table)
