"""mamba2_verify in the wild: random walks of a mixed batch against one-token calls, bit for bit.

Every walk mixes what a server does: ragged windows, chains and trees, any acceptance from none to all, folds, rows that
wrap around, rollbacks, resets, prompts of one token, copies of slots, states saved and put back, padding. The oracle of
a slot is a layer of its own with one slot that has only ever made one-token steps; a branch of a tree is a copy of it.
"""

import copy
import random

import pytest
import torch
from helpers import Surrounded, assert_bitwise

from llamba_kernels import ops
from llamba_kernels.cache import Session
from llamba_kernels.testing import make_mamba2_layer

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
BASE = dict(nheads=4, headdim=16, dstate=16, x_heads=None, B_heads=1, C_heads=1, width=4, dtype=F32, state=F32)
SIZES = {
    "base": {},
    "headdim 64, dstate 64, bf16, bf16 state": dict(headdim=64, dstate=64, dtype=BF16, state=BF16),
    "headdim 80, dstate 96, fp16, fp16 state": dict(headdim=80, dstate=96, dtype=F16, state=F16),
    "headdim 128, dstate 128, bf16": dict(nheads=2, headdim=128, dstate=128, dtype=BF16),
    "dstate 256, bf16 state": dict(nheads=2, dstate=256, state=BF16),
    "dstate 48, fp16": dict(dstate=48, dtype=F16),
    "3 groups, fp16 state": dict(nheads=6, B_heads=3, C_heads=3, state=F16),
    "a group per head": dict(B_heads=4, C_heads=4),
    "un-repeated GQA, bf16": dict(nheads=6, headdim=24, x_heads=2, B_heads=2, C_heads=6, dtype=BF16),
    "un-repeated GQA, fp16, bf16 state": dict(nheads=6, x_heads=3, B_heads=3, C_heads=6, dtype=F16, state=BF16),
    "width 2": dict(width=2),
    "width 3, headdim 5, bf16, bf16 state": dict(width=3, headdim=5, dtype=BF16, state=BF16),
}
SESSIONS = [(4, 0, 5), (1, 0, 8), (3, 4, 4), (8, 6, 6)]  # fold_every, max_rollback, max_window
WALKS = [(name, SESSIONS[i % 4]) for i, name in enumerate(SIZES)] + [("base", SESSIONS[2]), ("width 2", SESSIONS[3])]
BYSTANDER = 1
SLOTS = (0, 2, 3)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_layer(sizes, session, nslots):
    sizes = dict(sizes)
    width, state = sizes.pop("width"), sizes.pop("state")
    session = Session(session[2], session[0], session[1], width)
    return make_mamba2_layer(
        nslots, session=session, checkpoint_dtype=state, generator=torch.Generator().manual_seed(0), **sizes
    )


class Oracle:
    """One sequence, decoded token by token."""

    def __init__(self, sizes, fold_every):
        self.layer = make_layer(sizes, (fold_every, 0, 1), 1)
        self.before = []  # the oracles of the last tokens, for rollbacks

    def append(self, token):
        xBC, dt = token
        self.layer.cursor.begin(int32(0), int32(1))
        out = self.layer.verify(xBC.view(1, 1, -1), dt.view(1, 1, -1), int32(0))[0, 0]
        self.layer.cursor.commit(int32(0), int32(1))
        return out

    def commit(self, token):
        self.before = [*self.before[-8:], self.fork()]
        self.append(token)

    def fork(self):
        other = copy.copy(self)
        other.layer = copy.copy(self.layer)
        for name in ("checkpoint", "rows", "dt_rows", "cursor"):
            setattr(other.layer, name, copy.deepcopy(getattr(self.layer, name)))
        return other

    def rolled_back(self, n):
        return self.before[-n] if n else self

    def materialize(self):
        return materialize(self.layer, int32(0))


def materialize(layer, slots):
    p = layer.parameters
    return ops.materialize(
        *(p["conv_weight"], p["conv_bias"], p["A"], p["dt_bias"]),
        *(layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table, slots),
        **layer.heads,
        fold_every=layer.cursor.session.fold_every,
    )


class Walk:
    def __init__(self, name, session, seed):
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.sizes, self.session = BASE | SIZES[name], session
        self.layer = make_layer(self.sizes, session, 4)
        self.oracles = {slot: Oracle(self.sizes, session[0]) for slot in SLOTS}
        self.counts = dict.fromkeys(
            ("folds", "trees", "rejected all", "kept all", "rollbacks", "copies", "prompts", "imports", "resets"), 0
        )

    def run(self, steps):
        for _ in range(steps):
            self.step()
            action = self.rng.choice(["", self.rollback, self.copy, self.reset, self.prompt, self.put_back])
            if action and self.rng.random() < 0.5:
                action(self.rng.choice(SLOTS))

    def missing(self):
        """What it has not met yet, though it could."""
        return [what for what, count in self.counts.items() if count == 0 and (what != "rollbacks" or self.session[1])]

    def step(self):
        """One verify of a random batch; every token of it against its oracle's one-token call."""
        max_window, rng, layer = self.session[2], self.rng, self.layer
        slots = rng.sample(SLOTS, rng.randint(1, 3))
        slots.insert(rng.randint(0, len(slots)), -1)
        ntokens = [rng.randint(1, max_window) for _ in slots]
        window = rng.randint(max(ntokens), max_window)
        tree = rng.random() < 0.5
        parents = [[rng.randint(-1, i - 1) if tree else i - 1 for i in range(n)] for n in ntokens]
        xBC, dt = layer.tokens(len(slots), window, generator=self.generator)
        for i, n in enumerate(ntokens):
            used = 0 if slots[i] < 0 else n
            xBC[i, used:] = dt[i, used:] = float("nan")
        layer.cursor.begin(int32(*slots), int32(*ntokens))
        self.poison_free_rows()
        self.counts["folds"] += int((layer.cursor.table[list(SLOTS), 2] > 0).sum())
        out = Surrounded(torch.full((len(slots), window, layer.nheads, self.sizes["headdim"]), 7.0, dtype=xBC.dtype))
        padded = torch.tensor([p + [99] * (window - len(p)) for p in parents], dtype=torch.int32) if tree else None
        layer.verify(xBC, dt, int32(*slots), out=out.inner, parents=padded)
        out.assert_surroundings_untouched()

        accepted, paths = [], []
        for i, slot in enumerate(slots):
            used = 0 if slot < 0 else ntokens[i]
            assert not out.inner[i, used:].any()
            path = self.choose_path(parents[i])
            accepted.append(len(path))
            paths.append(path + [0] * (max_window - len(path)))
            if slot >= 0:
                self.check_tokens(slot, parents[i], out.inner[i], xBC[i], dt[i])
                self.counts["rejected all"] += not path
                self.counts["kept all"] += len(path) == ntokens[i]
                for node in path:
                    self.oracles[slot].commit((xBC[i, node], dt[i, node]))
        layer.cursor.commit(int32(*slots), int32(*accepted), torch.tensor(paths, dtype=torch.int32) if tree else None)
        self.counts["trees"] += tree

    def check_tokens(self, slot, parents, out, xBC, dt):
        branches = []
        for node, parent in enumerate(parents):
            branch = (self.oracles[slot] if parent < 0 else branches[parent]).fork()
            assert_bitwise(out[node], branch.append((xBC[node], dt[node])))
            branches.append(branch)

    def choose_path(self, parents):
        """From a root down, as far as chance has it."""
        keep, path = self.rng.choice([0.0, 0.7, 1.0]), []
        children = [node for node, parent in enumerate(parents) if parent == -1]
        while children and self.rng.random() < keep:
            path.append(self.rng.choice(children))
            children = [node for node, parent in enumerate(parents) if parent == path[-1]]
        return path

    def poison_free_rows(self):
        """What no step may read: the rows that are neither tail nor live, and a fresh slot's checkpoint."""
        width = self.sizes["width"]
        for slot in SLOTS:
            position, live = self.layer.cursor.table[slot, :2].tolist()
            table = self.layer.cursor.table[slot, 4:].tolist()
            free = [row for row in table[width - 1 + live :] if row >= 0]
            self.layer.rows[slot, free] = self.layer.dt_rows[slot, free] = float("nan")
            tail = [row for row in table[: width - 1] if row >= 0]
            self.layer.dt_rows[slot, tail] = float("nan")
            if position == live:
                self.layer.checkpoint[slot] = float("nan")

    def rollback(self, slot):
        live, most = int(self.layer.cursor.table[slot, 1]), self.session[1]
        oracle = self.oracles[slot]
        n = self.rng.randint(0, min(live, most, len(oracle.before)))
        self.layer.cursor.rollback(int32(slot), int32(n))
        self.oracles[slot] = oracle.rolled_back(n)
        self.counts["rollbacks"] += n > 0

    def copy(self, slot):
        other = self.rng.choice([s for s in SLOTS if s != slot])
        layer = self.layer
        states = [layer.checkpoint, layer.rows, layer.dt_rows]
        ops.slot_copy(layer.cursor.table, states, [], int32(slot, -1), int32(other, -1), width=self.sizes["width"])
        self.oracles[other] = self.oracles[slot].fork()
        self.counts["copies"] += 1

    def reset(self, slot):
        self.layer.cursor.reset(int32(slot))
        self.oracles[slot] = Oracle(self.sizes, self.session[0])
        self.counts["resets"] += 1

    def prompt(self, slot):
        """A prompt of one token, or of a few, handed over as a prefill does it: checkpoint, conv tail, live rows."""
        length = self.rng.choice([1, 1, 2, 5, 9])
        layer, oracle = self.layer, Oracle(self.sizes, self.session[0])
        xBC, dt = layer.tokens(length, generator=self.generator)
        fold_point = layer.cursor.session.fold_point(length)
        for token in zip(xBC[:fold_point], dt[:fold_point], strict=True):
            oracle.append(token)
        if fold_point:
            layer.checkpoint[slot] = oracle.materialize()[0][0].to(layer.checkpoint.dtype)
        first = max(0, fold_point - (self.sizes["width"] - 1))
        layer.rows[slot, : length - first] = xBC[first:]
        layer.dt_rows[slot, : length - first] = dt[first:]
        layer.cursor.reset(int32(slot), int32(length))
        for token in zip(xBC[fold_point:], dt[fold_point:], strict=True):
            oracle.commit(token)
        self.oracles[slot] = oracle
        self.counts["prompts"] += 1

    def put_back(self, slot):
        """The state of a slot, saved and imported; its bits are the one-token oracle's."""
        layer, position = self.layer, int(self.layer.cursor.table[slot, 0])
        (state, tail), (expected, expected_tail) = materialize(layer, int32(slot)), self.oracles[slot].materialize()
        assert_bitwise(state, expected)
        assert_bitwise(tail, expected_tail)
        if layer.checkpoint.dtype != F32 and position % self.session[0]:
            return  # a 16-bit checkpoint cannot hold this state exactly
        ops.cursor_reset(
            layer.cursor.table,
            int32(slot),
            int32(position),
            width=self.sizes["width"],
            max_window=self.session[2],
        )
        layer.checkpoint[slot] = layer.rows[slot] = layer.dt_rows[slot] = float("nan")
        ops.state_import(state, tail, layer.checkpoint, layer.rows, layer.cursor.table, int32(slot))
        self.counts["imports"] += 1


@pytest.mark.parametrize("name, session", WALKS, ids=str)
def test_walk_equals_one_token_calls_bit_for_bit(name, session, request):
    walk = Walk(name, session, seed=len(name) + session[0])
    layer = walk.layer
    bystander = [t[BYSTANDER].clone() for t in (layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table)]
    least = 70 if request.config.getoption("--device") == "simt" else 200  # the executor is slow; more: -m slow
    walk.run(least)
    for _ in range(least, 200):
        if walk.missing():
            walk.run(1)
    for before, after in zip(bystander, (layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table), strict=True):
        assert_bitwise(after[BYSTANDER], before)
    assert not walk.missing(), f"the walk met no {walk.missing()}: {walk.counts}"


@pytest.mark.slow
@pytest.mark.parametrize("session", SESSIONS, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_long_walks(name, session):
    """Every size with every session, 1000 steps."""
    Walk(name, session, seed=1000 + session[0]).run(1000)
