"""A Mamba-1 layer in the wild: random walks of a mixed batch against one-token calls, bit for bit.

conv1d_verify feeds mamba1_verify as in a stock layer. Every walk mixes what a server does: ragged windows, chains and
trees, any acceptance from none to all, folds, rows that wrap around, rollbacks, resets, prompts of one token, copies of
slots, states saved and put back, padding. The oracle of a slot is a layer of its own with one slot that has only ever
made one-token steps; a branch of a tree is a copy of it.
"""

import copy
import random

import pytest
import torch
from helpers import Surrounded, assert_bitwise
from test_mamba1_verify import poison_free_rows

from llamba_kernels import ops
from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
GROUPED = dict(d_inner=96, headdim=16, x_heads=3, B_heads=3, C_heads=6)
BASE = dict(d_inner=40, dstate=16, width=4, dtype=F32, state=F32)
SIZES = {
    "base": {},
    "attention-initialised": GROUPED,
    "attention-initialised, bf16, bf16 state": dict(**GROUPED, dtype=BF16, state=BF16),
    "d_inner 77, fp16, fp16 state": dict(d_inner=77, dtype=F16, state=F16),
    "d_inner 130, dstate 32, bf16": dict(d_inner=130, dstate=32, dtype=BF16),
    "heads of 11 and 7, dstate 48, fp16": dict(
        d_inner=77, headdim=11, x_heads=7, B_heads=7, C_heads=11, dstate=48, dtype=F16
    ),
    "dstate 64, fp16 state": dict(dstate=64, state=F16),
    "fp16, bf16 state": dict(dtype=F16, state=BF16),
    "width 2, no gate": dict(width=2, gate=False),
    "width 3, no bias, bf16, bf16 state": dict(width=3, bias=False, dtype=BF16, state=BF16),
}
SESSIONS = [(4, 0, 5), (1, 0, 8), (3, 4, 4), (2, 6, 6)]  # fold_every, max_rollback, max_window
WALKS = [(name, SESSIONS[i % 4]) for i, name in enumerate(SIZES)] + [("base", SESSIONS[2])]
BYSTANDER, SLOTS = 1, (0, 2, 3)
TOKENS = ("raw", "dt", "B", "C", "z")


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_layer(sizes, session, nslots):
    sizes = dict(sizes)
    width, state = sizes.pop("width"), sizes.pop("state")
    session = Session(session[2], session[0], session[1], width)
    generator = torch.Generator().manual_seed(0)
    return make_mamba1_layer(nslots, session=session, checkpoint_dtype=state, generator=generator, **sizes)


def draw_tokens(layer, *shape, generator):
    """What in_proj and x_proj give: all but x is independent of the conv here."""
    tokens = layer.tokens(*shape, generator=generator)
    return {"raw": layer.raw(*shape, generator=generator)} | {name: tokens[name] for name in TOKENS[1:]}


def select(tokens, *index):
    return {name: None if each is None else each[index] for name, each in tokens.items()}


def run_step(layer, tokens, slots, parents=None, outs=(None, None)):
    """Both operators; x is the conv's output."""
    tokens = dict(tokens)
    x = layer.convolve(tokens.pop("raw"), slots, parents, outs[0])
    return x, layer.verify({"x": x} | tokens, slots, parents, outs[1])


class Oracle:
    """One sequence, decoded token by token."""

    def __init__(self, sizes, fold_every):
        self.layer = make_layer(sizes, (fold_every, 0, 1), 1)
        self.before = []  # the oracles of the last tokens, for rollbacks

    def append(self, token):
        one = {name: None if each is None else each.view(1, 1, -1) for name, each in token.items()}
        self.layer.cursor.begin(int32(0), int32(1))
        outs = run_step(self.layer, one, int32(0))
        self.layer.cursor.commit(int32(0), int32(1))
        return [out[0, 0] for out in outs]

    def commit(self, token):
        self.before = [*self.before[-8:], self.fork()]
        self.append(token)

    def fork(self):
        other = copy.copy(self)
        other.layer = copy.copy(self.layer)
        for name in (*self.layer.BUFFERS, "cursor"):
            setattr(other.layer, name, copy.deepcopy(getattr(self.layer, name)))
        return other

    def rolled_back(self, n):
        return self.before[-n] if n else self


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
        """One step of a random batch; every token of it against its oracle's one-token call."""
        max_window, rng, layer = self.session[2], self.rng, self.layer
        slots = rng.sample(SLOTS, rng.randint(1, 3))
        slots.insert(rng.randint(0, len(slots)), -1)
        ntokens = [rng.randint(1, max_window) for _ in slots]
        window, tree = rng.randint(max(ntokens), max_window), rng.random() < 0.5
        parents = [[rng.randint(-1, i - 1) if tree else i - 1 for i in range(n)] for n in ntokens]
        tokens = draw_tokens(layer, len(slots), window, generator=self.generator)
        for i, n in enumerate(ntokens):
            for each in tokens.values():
                if each is not None:
                    each[i, 0 if slots[i] < 0 else n :] = float("nan")
        layer.cursor.begin(int32(*slots), int32(*ntokens))
        for slot in SLOTS:
            poison_free_rows(layer, slot)
        self.counts["folds"] += int((layer.cursor.table[list(SLOTS), 2] > 0).sum())
        empty = torch.full((len(slots), window, layer.d_inner), 7.0, dtype=layer.rows.dtype)
        outs = [Surrounded(empty), Surrounded(empty)]
        padded = torch.tensor([p + [99] * (window - len(p)) for p in parents], dtype=torch.int32) if tree else None
        run_step(layer, tokens, int32(*slots), padded, [out.inner for out in outs])

        accepted, paths = [], []
        for i, slot in enumerate(slots):
            for out in outs:
                assert not out.inner[i, 0 if slot < 0 else ntokens[i] :].any()
            path = self.choose_path(parents[i])
            accepted.append(len(path))
            paths.append(path + [0] * (max_window - len(path)))
            if slot >= 0:
                self.check_tokens(slot, parents[i], [out.inner[i] for out in outs], select(tokens, i))
                self.counts["rejected all"] += not path
                self.counts["kept all"] += len(path) == ntokens[i]
                for node in path:
                    self.oracles[slot].commit(select(tokens, i, node))
        for out in outs:
            out.assert_surroundings_untouched()
        layer.cursor.commit(int32(*slots), int32(*accepted), torch.tensor(paths, dtype=torch.int32) if tree else None)
        self.counts["trees"] += tree

    def check_tokens(self, slot, parents, outs, tokens):
        branches = []
        for node, parent in enumerate(parents):
            branch = (self.oracles[slot] if parent < 0 else branches[parent]).fork()
            for out, expected in zip(outs, branch.append(select(tokens, node)), strict=True):
                assert_bitwise(out[node], expected)
            branches.append(branch)

    def choose_path(self, parents):
        """From a root down, as far as chance has it."""
        keep, path = self.rng.choice([0.0, 0.7, 1.0]), []
        children = [node for node, parent in enumerate(parents) if parent == -1]
        while children and self.rng.random() < keep:
            path.append(self.rng.choice(children))
            children = [node for node, parent in enumerate(parents) if parent == path[-1]]
        return path

    def rollback(self, slot):
        live, most = int(self.layer.cursor.table[slot, 1]), self.session[1]
        oracle = self.oracles[slot]
        n = self.rng.randint(0, min(live, most, len(oracle.before)))
        self.layer.cursor.rollback(int32(slot), int32(n))
        self.oracles[slot] = oracle.rolled_back(n)
        self.counts["rollbacks"] += n > 0

    def copy(self, slot):
        other, layer = self.rng.choice([s for s in SLOTS if s != slot]), self.layer
        slots = int32(slot, -1), int32(other, -1)
        ops.slot_copy(layer.cursor.table, layer.buffers, [], *slots, width=self.sizes["width"])
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
        tokens = draw_tokens(layer, length, generator=self.generator)
        fold_point, xs = layer.cursor.session.fold_point(length), []
        for t in range(fold_point):
            xs.append(oracle.append(select(tokens, t))[0])
        if fold_point:
            layer.checkpoint[slot] = oracle.layer.materialize(int32(0))[0][0].to(layer.checkpoint.dtype)
        for t in range(fold_point, length):
            oracle.before = [*oracle.before[-8:], oracle.fork()]
            xs.append(oracle.append(select(tokens, t))[0])
        first = max(0, fold_point - (self.sizes["width"] - 1))
        live = slice(fold_point - first, length - first)
        layer.rows[slot, : length - first] = tokens["raw"][first:]
        if length > fold_point:
            layer.x_rows[slot, live] = torch.stack(xs[fold_point:])
        layer.dt_rows[slot, live], layer.B_rows[slot, live] = tokens["dt"][fold_point:], tokens["B"][fold_point:]
        layer.cursor.reset(int32(slot), int32(length))
        self.oracles[slot] = oracle
        self.counts["prompts"] += 1

    def put_back(self, slot):
        """The state of a slot, saved and imported; its bits are the one-token oracle's."""
        layer, position = self.layer, int(self.layer.cursor.table[slot, 0])
        state, tail = layer.materialize(int32(slot))
        expected, expected_tail = self.oracles[slot].layer.materialize(int32(0))
        assert_bitwise(state, expected)
        assert_bitwise(tail, expected_tail)
        if layer.checkpoint.dtype != F32 and position % self.session[0]:
            return  # a 16-bit checkpoint cannot hold this state exactly
        sizes = dict(width=self.sizes["width"], max_window=self.session[2])
        ops.cursor_reset(layer.cursor.table, int32(slot), int32(position), **sizes)
        for buffer in layer.buffers:
            buffer[slot] = float("nan")
        checkpoint = layer.checkpoint.unsqueeze(1)  # one head of d_inner dims
        ops.state_import(state.unsqueeze(1), tail, checkpoint, layer.rows, layer.cursor.table, int32(slot))
        self.counts["imports"] += 1


@pytest.mark.parametrize("name, session", WALKS, ids=str)
def test_walk_equals_one_token_calls_bit_for_bit(name, session):
    walk = Walk(name, session, seed=len(name) + session[0])
    bystander = [buffer[BYSTANDER].clone() for buffer in (*walk.layer.buffers, walk.layer.cursor.table)]
    walk.run(40)  # more: -m slow
    for _ in range(160):
        if walk.missing():
            walk.run(1)
    for before, after in zip(bystander, (*walk.layer.buffers, walk.layer.cursor.table), strict=True):
        assert_bitwise(after[BYSTANDER], before)
    assert not walk.missing(), f"the walk met no {walk.missing()}: {walk.counts}"


@pytest.mark.slow
@pytest.mark.parametrize("session", SESSIONS, ids=str)
@pytest.mark.parametrize("name", SIZES)
def test_long_walks(name, session):
    """Every size with every session, 1000 steps."""
    Walk(name, session, seed=1000 + session[0]).run(1000)
