"""conv1d_verify and mamba1_verify: against fp64 references and second formulations, what they must not touch."""

import random

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, threads

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer
from python_ref.conv1d_verify import conv1d_sequence_ref, conv1d_verify_ref
from python_ref.mamba1_verify import mamba1_sequence_ref, mamba1_verify_ref

NAN = float("nan")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
GROUPED = dict(d_inner=96, headdim=16, x_heads=3, B_heads=3, C_heads=6)  # as MambaInLlama initialises from attention
CASES = {
    "base": {},
    "attention-initialised": GROUPED,
    "attention-initialised, bf16": dict(**GROUPED, dtype=BF16),
    "d_inner 77": dict(d_inner=77),
    "heads of 11 and 7": dict(d_inner=77, headdim=11, x_heads=7, B_heads=7, C_heads=11),
    "d_inner 130, fp16": dict(d_inner=130, dtype=F16),
    "d_inner 5": dict(d_inner=5),
    "dstate 32": dict(dstate=32),
    "dstate 48, bf16 state": dict(dstate=48, checkpoint_dtype=BF16),
    "dstate 64, grouped": dict(**GROUPED, dstate=64),
    "width 2": dict(width=2),
    "width 3": dict(width=3),
    "no bias, no D": dict(bias=False),
    "no gate": dict(gate=False),
    "bf16": dict(dtype=BF16),
    "bf16, bf16 state": dict(dtype=BF16, checkpoint_dtype=BF16),
    "fp16, fp16 state": dict(dtype=F16, checkpoint_dtype=F16),
    "fp16 state": dict(checkpoint_dtype=F16),
}


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_layer(seed=0, nslots=2, max_window=5, fold_every=2, max_rollback=0, width=4, **change):
    session = Session(max_window, fold_every, max_rollback, width)
    return make_mamba1_layer(nslots, session=session, generator=torch.Generator().manual_seed(seed), **change)


def poison_free_rows(layer, slot):
    """What no step may read: the rows that are neither tail nor live; of x, dt and B those of the tail, too."""
    width, (position, live) = layer.cursor.session.width, layer.cursor.table[slot, :2].tolist()
    table = layer.cursor.table[slot, 4:].tolist()
    free = [row for row in table[width - 1 + live :] if row >= 0]
    tail = [row for row in table[: width - 1] if row >= 0]
    layer.rows[slot, free] = NAN
    for rows in (layer.x_rows, layer.dt_rows, layer.B_rows):
        rows[slot, free + tail] = NAN
    if position == live:
        layer.checkpoint[slot] = NAN


def walk(layer, steps, rng, generator, slot=1, tree=False, step=None):
    """A random-acceptance walk on one slot: yields raw x, tokens, parents, the path that stayed, what step() gave."""
    step = step or (
        lambda raw, tokens, slots, parents: (layer.convolve(raw, slots, parents), layer.verify(tokens, slots, parents))
    )
    for _ in range(steps):
        ntokens = rng.randint(1, layer.cursor.session.max_window)
        parents = [rng.randint(-1, i - 1) if tree else i - 1 for i in range(ntokens)]
        leaf, path = rng.randint(-1, ntokens - 1), []
        while leaf >= 0:
            path, leaf = [leaf, *path], parents[leaf]
        raw, tokens = layer.raw(1, ntokens, generator=generator), layer.tokens(1, ntokens, generator=generator)
        layer.cursor.begin(int32(slot), int32(ntokens))
        poison_free_rows(layer, slot)
        parents = int32(*parents).view(1, -1) if tree else None
        outs = step(raw, tokens, int32(slot), parents)
        layer.cursor.commit(int32(slot), int32(len(path)), int32(*path).view(1, -1))
        yield raw, tokens, parents, path, outs


def reference_step(layer, raw, tokens, slots, parents, compute):
    arguments, keywords = layer.conv_arguments(raw, slots)
    conv = conv1d_verify_ref(*arguments, **keywords, parents=parents, compute_dtype=compute)
    options = dict(fold_every=layer.cursor.session.fold_every, parents=parents, compute_dtype=compute)
    return conv, mamba1_verify_ref(*layer.arguments(tokens, slots), **layer.heads, **options)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change, tree):
    """At most twice the error of the same formula in PyTorch at the same dtypes: outputs of all steps, checkpoints."""
    convs, outs, states = ([[], [], []] for _ in range(3))
    for seed in range(2):
        layer, wide, torch_layer = (make_layer(seed, **change) for _ in range(3))
        wide.checkpoint = wide.checkpoint.double()
        generator = torch.Generator().manual_seed(seed + 10)
        for raw, tokens, parents, path, ours in walk(layer, 8, random.Random(seed), generator, tree=tree):
            for i, (other, compute) in enumerate(((wide, torch.float64), (torch_layer, torch.float32)), start=1):
                other.cursor.begin(int32(1), int32(raw.shape[1]))
                reference = reference_step(other, raw, tokens, int32(1), parents, compute)
                other.cursor.commit(int32(1), int32(len(path)), int32(*path).view(1, -1))
                for kept, ref in zip((convs, outs), reference, strict=True):
                    kept[i].append((ref if other is wide else ref.to(raw.dtype)).flatten())
            convs[0].append(ours[0].flatten())
            outs[0].append(ours[1].flatten())
        position, live = layer.cursor.table[1, :2].tolist()
        if position > live:  # not fresh: a checkpoint has been written
            for kept, each in zip(states, (layer, wide, torch_layer), strict=True):
                kept.append(each.checkpoint[1].flatten())
        assert_same_rows(layer, wide, slot=1)
    for kept in (convs, outs, states):
        assert_close_to_ref(*(torch.cat(parts) for parts in kept))


def assert_same_rows(layer, other, slot):
    """The rows that the cursor calls tail or live are the inputs, bit for bit."""
    assert_bitwise(layer.cursor.table, other.cursor.table)
    before, live = layer.cursor.session.width - 1, int(layer.cursor.table[slot, 1])
    table = layer.cursor.table[slot, 4 : 4 + before + live].tolist()
    for name, rows in (("rows", table), *((name, table[before:]) for name in ("x_rows", "dt_rows", "B_rows"))):
        rows = [row for row in rows if row >= 0]
        assert_bitwise(getattr(layer, name)[slot, rows], getattr(other, name)[slot, rows])


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("change", [{}, GROUPED], ids=["stock", "grouped"])
def test_references_equal_second_formulations(change, tree):
    """The token loops in float64 against torch's convolution and against one masked matrix per channel and state."""
    layer, kept = make_layer(**change), []
    layer.checkpoint = layer.checkpoint.double()

    def step(*arguments):
        return reference_step(layer, *arguments, torch.float64)

    generator = torch.Generator().manual_seed(4)
    for raw, tokens, _, path, outs in walk(layer, 12, random.Random(5), generator, tree=tree, step=step):
        kept.append([each[0, path] for each in (raw, *tokens.values(), *outs)])
    raw, *tokens, conv, out = (torch.cat(parts) for parts in zip(*kept, strict=True))
    expected = conv1d_sequence_ref(raw, *layer.conv.values(), layer.x_heads, layer.headdim)
    torch.testing.assert_close(conv, expected, rtol=1e-12, atol=1e-12)
    expected = mamba1_sequence_ref(*tokens, *layer.parameters.values(), **layer.heads)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_batch_padding_bystanders_and_sentinels():
    """A mixed batch with padding equals each sequence alone; nothing outside what the ops own changes a bit."""
    layer, alone = make_layer(nslots=4, **GROUPED), make_layer(nslots=4, **GROUPED)
    generator = torch.Generator().manual_seed(6)
    for slot, ntokens in ((0, 3), (3, 5), (0, 2), (3, 1)):  # give the two slots different histories
        raw, tokens = layer.raw(1, ntokens, generator=generator), layer.tokens(1, ntokens, generator=generator)
        for each in (layer, alone):
            each.cursor.begin(int32(slot), int32(ntokens))
            each.convolve(raw, int32(slot)), each.verify(tokens, int32(slot))
            each.cursor.commit(int32(slot), int32(ntokens))
    bystanders = [buffer[[1, 2]].clone() for buffer in layer.buffers]

    slots, ntokens = int32(3, -1, 0), int32(2, 1, 4)
    raw, tokens = layer.raw(3, 5, generator=generator), layer.tokens(3, 5, generator=generator)
    for each in (raw, *tokens.values()):
        each[1], each[0, 2:] = NAN, NAN
    outs = [Surrounded(torch.full((3, 5, layer.d_inner), NAN), fill=777.0) for _ in range(2)]
    layer.cursor.begin(slots, ntokens)
    layer.convolve(raw, slots, out=outs[0].inner)
    layer.verify(tokens, slots, out=outs[1].inner)
    alone.cursor.begin(slots, ntokens)
    for i in (2, 0):
        n, slot = int(ntokens[i]), slots[i : i + 1]
        one = {name: each[i : i + 1, :n] for name, each in tokens.items()}
        assert_bitwise(outs[0].inner[i : i + 1, :n], alone.convolve(raw[i : i + 1, :n], slot))
        assert_bitwise(outs[1].inner[i : i + 1, :n], alone.verify(one, slot))
    for out in outs:
        assert not out.inner[1].any() and not out.inner[0, 2:].any() and not out.inner[2, 4:].any()
        out.assert_surroundings_untouched()
    for before, after in zip(bystanders, layer.buffers, strict=True):
        assert_bitwise(after[[1, 2]], before)


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_threads_do_not_change_bits(dtype):
    """A ragged batch large enough to be split, on one, two and three threads."""
    results = {}
    for count in (1, 2, 3):
        with threads(count):
            layer = make_layer(nslots=3, d_inner=2560, headdim=16, x_heads=80, B_heads=2, C_heads=160, dtype=dtype)
            generator, outs = torch.Generator().manual_seed(9), []
            for ntokens, accepted in (((5, 2, 4), (5, 2, 1)), ((1, 5, 5), (1, 3, 5)), ((5, 5, 5), (0, 0, 0))):
                layer.cursor.begin(int32(2, 0, 1), int32(*ntokens))
                outs.append(layer.convolve(layer.raw(3, 5, generator=generator), int32(2, 0, 1)))
                outs.append(layer.verify(layer.tokens(3, 5, generator=generator), int32(2, 0, 1)))
                layer.cursor.commit(int32(2, 0, 1), int32(*accepted))
            results[count] = (*outs, *layer.buffers)
    for count in (2, 3):
        for actual, expected in zip(results[count], results[1], strict=True):
            assert_bitwise(actual.nan_to_num(), expected.nan_to_num())


def test_sliced_inputs_equal_dense_ones():
    """Inputs as slices of the projections, parameters and buffers with gaps, rows as columns of one buffer."""
    layer, dense = make_layer(**GROUPED), make_layer(**GROUPED)
    raw, tokens = layer.raw(1, 4), layer.tokens(1, 4)
    together = torch.cat([raw, *tokens.values()], -1)
    sizes = [raw.shape[-1], *(each.shape[-1] for each in tokens.values())]
    wide = Surrounded(together).inner.split(sizes, -1)
    sliced = wide[0], dict(zip(tokens, wide[1:], strict=True))
    layer.conv["conv_weight"] = layer.conv["conv_weight"].t().contiguous().t()
    layer.parameters["A"] = Surrounded(layer.parameters["A"]).inner
    names = ("rows", "x_rows", "dt_rows", "B_rows")
    sizes = [getattr(layer, name).shape[-1] for name in names]
    both = torch.full((2, layer.rows.shape[1], sum(sizes) + 9), NAN)[..., 2 : 2 + sum(sizes)]
    for name, part in zip(names, both.split(sizes, -1), strict=True):
        setattr(layer, name, part)
    layer.checkpoint = Surrounded(layer.checkpoint).inner
    for _ in range(3):
        outs = []
        for each, (x, inputs) in ((layer, sliced), (dense, (raw, tokens))):
            each.cursor.begin(int32(0), int32(4))
            outs.append([each.convolve(x, int32(0)), each.verify(inputs, int32(0))])
            each.cursor.commit(int32(0), int32(3))
        assert_bitwise(outs[0][0], outs[1][0])
        assert_bitwise(outs[0][1], outs[1][1])
    assert_bitwise(layer.checkpoint[0], dense.checkpoint[0])


def test_a_step_compiles_without_graph_break():
    """begin, both, commit through torch.compile give eager's outputs and buffers: the mutation marks are right."""
    eager, compiled = make_layer(), make_layer()

    def step(layer, raw, tokens, slots, ntokens, accepted):
        layer.cursor.begin(slots, ntokens)
        conv, out = layer.convolve(raw, slots), layer.verify(tokens, slots)
        layer.cursor.commit(slots, accepted)
        return conv * 2, out * 2

    fast = torch.compile(step, fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(11)
    for accepted in (5, 1, 3):
        raw, tokens = eager.raw(1, 5, generator=generator), eager.tokens(1, 5, generator=generator)
        with torch.no_grad():
            outs = [
                function(layer, raw, tokens, int32(0), int32(5), int32(accepted))
                for function, layer in ((step, eager), (fast, compiled))
            ]
        assert_bitwise(outs[1][0], outs[0][0])
        assert_bitwise(outs[1][1], outs[0][1])
    assert_bitwise(compiled.cursor.table, eager.cursor.table)
    assert_bitwise(compiled.checkpoint[0], eager.checkpoint[0])


def test_opcheck():
    layer = make_layer(**GROUPED)
    for buffer in layer.buffers:
        buffer.zero_()
    layer.cursor.begin(int32(0), int32(3))
    out, parents = torch.zeros(1, 3, layer.d_inner), int32(-1, 0, 0).view(1, 3)
    arguments, keywords = layer.conv_arguments(layer.raw(1, 3), int32(0))
    arguments = (*arguments, *keywords.values(), parents, out)
    torch.library.opcheck(torch.ops.llamba.conv1d_verify.default, arguments)
    arguments = (*layer.arguments(layer.tokens(1, 3), int32(0)), *layer.heads.values(), 2, parents, out)
    torch.library.opcheck(torch.ops.llamba.mamba1_verify.default, arguments)
