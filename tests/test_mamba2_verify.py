"""mamba2_verify: against the fp64 reference, K tokens against K one-token calls bit for bit, what it must not touch."""

import random

import pytest
import torch
from helpers import assert_bitwise, assert_close_to_ref, threads

from llamba_kernels.cache import Session
from llamba_kernels.testing import make_mamba2_layer
from python_ref.mamba2_verify import mamba2_sequence_ref, mamba2_verify_ref

NAN = float("nan")
BASE = dict(
    nheads=8,
    headdim=64,
    dstate=64,
    x_heads=None,
    B_heads=1,
    C_heads=1,
    width=4,
    dtype=torch.float32,
    checkpoint_dtype=torch.float32,
    bias=True,
)
CASES = {
    "base": {},
    "smollm2-135m": dict(nheads=9, x_heads=3, B_heads=3, C_heads=9),
    "one head": dict(nheads=1),
    "groups per head": dict(nheads=4, B_heads=4, C_heads=4),
    "shared x": dict(nheads=6, x_heads=2, B_heads=3, C_heads=6),
    "headdim 80": dict(headdim=80),
    "headdim 5": dict(headdim=5),
    "dstate 16": dict(dstate=16),
    "dstate 96": dict(dstate=96),
    "dstate 128": dict(nheads=2, dstate=128),
    "dstate 256": dict(nheads=2, dstate=256),
    "width 2": dict(width=2),
    "width 3": dict(width=3),
    "no bias, no D": dict(bias=False),
    "bf16": dict(dtype=torch.bfloat16),
    "bf16 shared x": dict(dtype=torch.bfloat16, nheads=6, x_heads=2, B_heads=3, C_heads=6),
    "bf16, bf16 state": dict(dtype=torch.bfloat16, checkpoint_dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "fp16, fp16 state": dict(dtype=torch.float16, checkpoint_dtype=torch.float16),
    "bf16 state": dict(checkpoint_dtype=torch.bfloat16),
    "fp16 state, dstate 48": dict(checkpoint_dtype=torch.float16, dstate=48),
}


def make_layer(seed=0, nslots=2, max_window=5, fold_every=4, max_rollback=0, **change):
    case = BASE | change
    session = Session(max_window, fold_every, max_rollback, case.pop("width"))
    return make_mamba2_layer(nslots, session=session, generator=torch.Generator().manual_seed(seed), **case)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def poison_free_rows(layer, slot):
    """What no step may read: the rows that are neither tail nor live."""
    live, table = int(layer.cursor.table[slot, 1]), layer.cursor.table[slot, 4:].tolist()
    free = [row for row in table[layer.cursor.session.width - 1 + live :] if row >= 0]
    layer.rows[slot, free] = NAN
    layer.dt_rows[slot, free] = NAN


def walk(layer, steps, rng, generator, slot=1, verify=None, tree=False, least=1):
    """A random-acceptance walk on one slot: yields the window (xBC, dt), parents, the path that stayed, outputs."""
    verify = verify or layer.verify
    for _ in range(steps):
        ntokens = rng.randint(least, layer.cursor.session.max_window)
        parents = [rng.randint(-1, i - 1) if tree else i - 1 for i in range(ntokens)]
        leaf, path = rng.randint(-1, ntokens - 1), []
        while leaf >= 0:
            path, leaf = [leaf, *path], parents[leaf]
        xBC, dt = layer.tokens(1, ntokens, generator=generator)
        layer.cursor.begin(int32(slot), int32(ntokens))
        poison_free_rows(layer, slot)
        parents = int32(*parents).view(1, -1) if tree else None
        out = verify(xBC, dt, int32(slot), parents=parents)
        layer.cursor.commit(int32(slot), int32(len(path)), int32(*path).view(1, -1))
        yield xBC, dt, parents, path, out


def run_walk(change, tree, algorithm="auto", steps=8, seeds=3, least=1, **session):
    """Outputs and final checkpoints of the op, of the fp64 reference and of PyTorch at the op's dtypes.

    Several walks are pooled: a state is a sum of few rank-one terms, so in one an unlucky rounding fills a whole row.
    """
    outs, states = [[], [], []], [[], [], []]
    for seed in range(seeds):
        layer, wide, torch_layer = (make_layer(seed, **session, **change) for _ in range(3))
        layer.algorithm = algorithm
        wide.checkpoint = wide.checkpoint.double()
        generator, fold_every = torch.Generator().manual_seed(seed + 10), layer.cursor.session.fold_every
        for xBC, dt, parents, path, out in walk(layer, steps, random.Random(seed), generator, tree=tree, least=least):
            outs[0].append(out.flatten())
            for i, (other, compute) in enumerate(((wide, torch.float64), (torch_layer, torch.float32)), start=1):
                other.cursor.begin(int32(1), int32(xBC.shape[1]))
                options = dict(parents=parents, fold_every=fold_every, compute_dtype=compute)
                ref = mamba2_verify_ref(*other.arguments(xBC, dt, int32(1)), **other.heads, **options)
                outs[i].append((ref if other is wide else ref.to(out.dtype)).flatten())
                other.cursor.commit(int32(1), int32(len(path)), int32(*path).view(1, -1))
        position, live = layer.cursor.table[1, :2].tolist()
        if position > live:  # not fresh: a checkpoint has been written
            for kept, each in zip(states, (layer, wide, torch_layer), strict=True):
                kept.append(each.checkpoint[1].flatten())
        assert_same_rows(layer, wide, slot=1)
    return [torch.cat(parts) for parts in outs], [torch.cat(parts) for parts in states]


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change, tree):
    """At most twice the error of the same formula in PyTorch at the same dtypes: outputs of all steps, checkpoints."""
    outs, states = run_walk(change, tree)
    assert_close_to_ref(*outs)
    assert_close_to_ref(*states)


def assert_same_rows(layer, other, slot):
    """The rows that the cursor calls tail or live are the raw inputs, bit for bit."""
    assert_bitwise(layer.cursor.table, other.cursor.table)
    used = layer.cursor.session.width - 1 + int(layer.cursor.table[slot, 1])
    rows = [row for row in layer.cursor.table[slot, 4 : 4 + used].tolist() if row >= 0]
    assert_bitwise(layer.rows[slot, rows], other.rows[slot, rows])
    assert_bitwise(layer.dt_rows[slot, rows], other.dt_rows[slot, rows])


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
def test_reference_equals_matrix_form(tree):
    """The token loop in float64 against the quadratic form over the whole sequence: two formulations of the layer."""
    change = dict(nheads=6, x_heads=2, B_heads=3, C_heads=6)
    layer, generator = make_layer(**change), torch.Generator().manual_seed(4)
    layer.checkpoint = layer.checkpoint.double()
    kept = []

    def verify(xBC, dt, slots, parents):
        return mamba2_verify_ref(*layer.arguments(xBC, dt, slots), **layer.heads, parents=parents)

    for xBC, dt, _, path, out in walk(layer, 20, random.Random(5), generator, verify=verify, tree=tree):
        kept.append((xBC[0, path], dt[0, path], out[0, path]))
    xBC, dt, out = (torch.cat(parts) for parts in zip(*kept, strict=True))
    p = layer.parameters
    expected = mamba2_sequence_ref(
        xBC, dt, p["conv_weight"], p["conv_bias"], p["A"], p["D"], p["dt_bias"], **layer.heads, dstate=64
    )
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-7)  # the conv output is rounded to fp32 in both


def test_batch_padding_bystanders_and_sentinels():
    """A mixed batch with padding equals each sequence alone; nothing outside what the op owns changes a bit."""
    layer, alone = make_layer(nslots=4), make_layer(nslots=4)
    generator = torch.Generator().manual_seed(6)
    for slot, ntokens in ((0, 3), (3, 5), (0, 2), (3, 1)):  # give the two slots different histories
        xBC, dt = layer.tokens(1, ntokens, generator=generator)
        for each in (layer, alone):
            each.cursor.begin(int32(slot), int32(ntokens))
            each.verify(xBC, dt, int32(slot))
            each.cursor.commit(int32(slot), int32(ntokens))
    bystanders = [t[[1, 2]].clone() for t in (layer.checkpoint, layer.rows, layer.dt_rows)]

    slots, ntokens = int32(3, -1, 0), int32(2, 1, 4)
    xBC, dt = layer.tokens(3, 5, generator=generator)
    xBC[1], dt[1] = NAN, NAN
    xBC[0, 2:], dt[0, 2:] = NAN, NAN
    wide = torch.full((3, 7, layer.nheads, 64 + 9), 777.0)
    out = wide[:, 1:-1, :, 4:-5]
    layer.cursor.begin(slots, ntokens)
    layer.verify(xBC, dt, slots, out=out)
    alone.cursor.begin(slots, ntokens)
    for i in (2, 0):
        n = int(ntokens[i])
        assert_bitwise(out[i : i + 1, :n], alone.verify(xBC[i : i + 1, :n], dt[i : i + 1, :n], slots[i : i + 1]))
    assert not out[1].any() and not out[0, 2:].any() and not out[2, 4:].any(), "rows beyond ntokens must be zero"
    out.fill_(777.0)
    assert bool((wide == 777.0).all()), "the op wrote outside out"
    for before, after in zip(bystanders, (layer.checkpoint, layer.rows, layer.dt_rows), strict=True):
        assert_bitwise(after[[1, 2]], before)


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_bits(dtype):
    """A ragged batch large enough for both stages to be split, on one, two and three threads."""
    results = {}
    for count in (1, 2, 3):
        with threads(count):
            layer = make_layer(nslots=3, nheads=80, dstate=128, x_heads=80, B_heads=80, C_heads=80, dtype=dtype)
            generator, outs = torch.Generator().manual_seed(9), []
            for ntokens, accepted in (((5, 2, 4), (5, 2, 1)), ((1, 5, 5), (1, 3, 5)), ((5, 5, 5), (0, 0, 0))):
                layer.cursor.begin(int32(2, 0, 1), int32(*ntokens))
                outs.append(layer.verify(*layer.tokens(3, 5, generator=generator), int32(2, 0, 1)))
                layer.cursor.commit(int32(2, 0, 1), int32(*accepted))
            results[count] = (*outs, layer.checkpoint)
    for count in (2, 3):
        for actual, expected in zip(results[count], results[1], strict=True):
            assert_bitwise(actual.nan_to_num(), expected.nan_to_num())


def test_a_step_compiles_without_graph_break():
    """begin, verify, commit through torch.compile give eager's outputs and buffers: the mutation marks are right."""
    eager, compiled = make_layer(), make_layer()

    def step(layer, xBC, dt, slots, ntokens, accepted):
        layer.cursor.begin(slots, ntokens)
        out = layer.verify(xBC, dt, slots)
        layer.cursor.commit(slots, accepted)
        return out * 2

    fast = torch.compile(step, fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(11)
    for accepted in (5, 1, 3):
        xBC, dt = eager.tokens(1, 5, generator=generator)
        with torch.no_grad():
            outs = [
                function(layer, xBC, dt, int32(0), int32(5), int32(accepted))
                for function, layer in ((step, eager), (fast, compiled))
            ]
        assert_bitwise(outs[1], outs[0])
    assert_bitwise(compiled.cursor.table, eager.cursor.table)
    assert_bitwise(compiled.checkpoint[0], eager.checkpoint[0])


def test_sliced_inputs_equal_dense_ones():
    layer, dense = make_layer(), make_layer()
    xBC, dt = layer.tokens(1, 4)
    projected = torch.full((1, 4, 7 + layer.conv_dim + layer.nheads + 3), NAN)
    projected[..., 7 : 7 + layer.conv_dim], projected[..., 7 + layer.conv_dim : -3] = xBC, dt
    sliced = projected[..., 7 : 7 + layer.conv_dim], projected[..., 7 + layer.conv_dim : -3]
    layer.parameters["conv_weight"] = layer.parameters["conv_weight"].t().contiguous().t()
    both = torch.full((*layer.rows.shape[:2], layer.conv_dim + layer.nheads + 5), NAN)  # columns of one buffer
    layer.rows, layer.dt_rows = both[..., 2 : 2 + layer.conv_dim], both[..., -3 - layer.nheads : -3]
    layer.checkpoint = torch.full((2, 9, 67, 80), NAN)[:, 1:, 2 : 2 + 64, 5 : 5 + 64]
    for _ in range(3):
        outs = []
        for each, inputs in ((layer, sliced), (dense, (xBC, dt))):
            each.cursor.begin(int32(0), int32(4))
            outs.append(each.verify(*inputs, int32(0)))
            each.cursor.commit(int32(0), int32(3))
        assert_bitwise(outs[0], outs[1])
    assert_bitwise(layer.checkpoint[0], dense.checkpoint[0])


def test_slot_reuse_after_reset_ignores_the_old_state():
    layer, fresh = make_layer(), make_layer()
    list(walk(layer, 20, random.Random(7), torch.Generator().manual_seed(8), slot=0))
    layer.cursor.reset(int32(0))
    xBC, dt = layer.tokens(1, 5)
    for _ in range(3):
        outs = []
        for each in (layer, fresh):
            each.cursor.begin(int32(0), int32(5))
            outs.append(each.verify(xBC, dt, int32(0)))
            each.cursor.commit(int32(0), int32(5))
        assert_bitwise(outs[0], outs[1])


def test_opcheck():
    layer = make_layer()
    layer.checkpoint.zero_(), layer.rows.zero_(), layer.dt_rows.zero_()
    layer.cursor.begin(int32(0), int32(3))
    out = torch.zeros(1, 3, 8, 64)
    parents = torch.tensor([[-1, 0, 0]], dtype=torch.int32)
    args = (*layer.arguments(*layer.tokens(1, 3), int32(0)), *layer.heads.values(), 4, 0, parents, out)
    torch.library.opcheck(torch.ops.llamba.mamba2_verify.default, args)
