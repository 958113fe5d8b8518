"""The recurrent algorithm on a device: what its bits must not depend on there, and what the CPU's tests cannot see."""

import copy
import ctypes

import on_device
import pytest
import torch
from helpers import assert_bitwise
from test_mamba2_verify import int32, make_layer

from llamba_kernels.ops import materialize

pytestmark = pytest.mark.device_only
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def fork(layer):
    other = copy.copy(layer)
    for name in ("checkpoint", "rows", "dt_rows", "cursor"):
        setattr(other, name, copy.deepcopy(getattr(layer, name)))
    return other


def run_steps(layer, parents=None, steps=3, accepted=3, batch=1):
    """Outputs of some steps of five tokens in slots 0 ..., and the buffers after them; the same tokens each time."""
    generator, outs, slots = torch.Generator().manual_seed(1), [], int32(*range(batch))
    ntokens = int32(*[5] * batch)
    for _ in range(steps):
        xBC, dt = layer.tokens(batch, 5, generator=generator)
        layer.cursor.begin(slots, ntokens)
        tree = None if parents is None else int32(*parents).repeat(batch, 1)
        outs.append(layer.verify(xBC, dt, slots, parents=tree))
        path = int32(0, 1, 2).repeat(batch, 1) if parents is None else int32(0, 2, 3).repeat(batch, 1)
        layer.cursor.commit(slots, int32(*[accepted] * batch), path)
    written = [layer.checkpoint[:batch], layer.rows[:batch], layer.dt_rows[:batch]]
    return [each.nan_to_num() for each in (*outs, *written)]


TREE = (-1, 0, 0, 2, 1)
SIZES = {
    "dstate 16": dict(dstate=16, headdim=24),
    "dstate 64": dict(),
    "dstate 96, headdim 80": dict(dstate=96, headdim=80, nheads=3),
    "dstate 128, bf16": dict(dstate=128, dtype=BF16, nheads=2),
    "dstate 128, bf16 state": dict(dstate=128, dtype=BF16, checkpoint_dtype=BF16, nheads=2),
    "dstate 256, fp16, fp16 state": dict(dstate=256, dtype=F16, checkpoint_dtype=F16, nheads=2),
    "un-repeated GQA": dict(nheads=6, x_heads=2, B_heads=3, C_heads=6),
}


@pytest.mark.parametrize("parents", [None, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("change", SIZES.values(), ids=SIZES)
def test_equals_the_cpu_within_round_off(change, parents):
    device = run_steps(make_layer(**change), parents)
    with on_device.cpu_kernels():
        cpu = run_steps(make_layer(**change), parents)
    types = [change.get(name, F32) for name in ("dtype", "checkpoint_dtype")]
    coarsest = max(torch.finfo(each).eps for each in types)
    allowed = 64 * coarsest if coarsest == torch.finfo(F32).eps else 2 * coarsest  # a sum; one flip of a rounding
    for actual, expected in zip(device[:-2], cpu[:-2], strict=True):
        error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
        assert error <= allowed
    assert_bitwise(device[-2], cpu[-2])
    assert_bitwise(device[-1], cpu[-1])


@pytest.mark.parametrize("parents", [None, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("change", SIZES.values(), ids=SIZES)
def test_block_sizes_and_schedules_do_not_change_bits(change, parents, simt):
    expected, requested = None, set()
    for multiprocessors in (1, 4, 1000):  # large blocks, some, small ones
        for seed in (2, 3):
            simt.llamba_simt_seed(ctypes.c_uint64(seed))
            layer = make_layer(**change)
            with on_device.another_device(multiprocessors=multiprocessors):
                results, sectors = on_device.count_sectors(lambda layer=layer: run_steps(layer, parents, batch=2))
            requested.add(sectors[2])
            expected = expected or results
            for actual, value in zip(results, expected, strict=True):
                assert_bitwise(actual, value)
    if change.get("dstate", 64) > 64:
        assert len(requested) > 1, "the block size did not change"


def test_a_batch_does_not_change_bits():
    together = run_steps(make_layer(nslots=3), batch=3)
    layer, generator = make_layer(nslots=3), torch.Generator().manual_seed(1)
    for step in range(3):
        xBC, dt = layer.tokens(3, 5, generator=generator)
        layer.cursor.begin(int32(2), int32(5))
        assert_bitwise(layer.verify(xBC[2:], dt[2:], int32(2)), together[step][2:])
        layer.cursor.commit(int32(2), int32(3))


def one_token_calls(layer, xBC, dt, path):
    """The outputs of the tokens of a path, one call each, on a copy of the layer."""
    layer, outs = fork(layer), []
    for node in path:
        layer.cursor.begin(int32(0), int32(1))
        outs.append(layer.verify(xBC[:, node : node + 1], dt[:, node : node + 1], int32(0)))
        layer.cursor.commit(int32(0), int32(1))
    return torch.cat(outs, 1)


@pytest.mark.parametrize("checkpoint_dtype", [F32, BF16], ids=str)
def test_windows_and_live_rows_longer_than_the_shared_memory(checkpoint_dtype):
    """Chunks: live rows that end within one, a fold within one, a window of several."""
    small = dict(nheads=2, headdim=8, dstate=16, checkpoint_dtype=checkpoint_dtype)
    layer = make_layer(max_window=40, fold_every=19, max_rollback=3, **small)
    for ntokens, accepted in ((7, 7), (40, 37), (16, 16), (17, 1), (40, 40), (1, 1), (32, 20)):
        xBC, dt = layer.tokens(1, ntokens)
        before = fork(layer)
        layer.cursor.begin(int32(0), int32(ntokens))
        assert_bitwise(layer.verify(xBC, dt, int32(0)), one_token_calls(before, xBC, dt, range(ntokens)))
        layer.cursor.commit(int32(0), int32(accepted))
    assert int(layer.cursor.table[0, 0]) == 122


def comb(length):
    """A path of half the tokens; the other half are leaves on its end: every one walks the path again."""
    return [min(i - 1, length // 2 - 1) for i in range(length)]


TREES = {
    "comb of 16": comb(16),
    "comb of 17": comb(17),
    "comb of 64": comb(64),
    "roots only": [-1] * 20,
    "binary, level by level": [(i - 1) // 2 if i else -1 for i in range(63)],
    "random": [int(torch.randint(-1, i, (), generator=torch.Generator().manual_seed(i))) for i in range(64)],
    "nearly a chain": [i - 1 if i % 7 else max(i - 3, -1) for i in range(64)],
}


@pytest.mark.parametrize("dstate", [16, 256])
@pytest.mark.parametrize("parents", TREES.values(), ids=TREES)
def test_every_path_of_a_large_tree_equals_one_token_calls(parents, dstate):
    layer = make_layer(max_window=64, nheads=1, headdim=8, dstate=dstate, checkpoint_dtype=BF16)
    xBC, dt = layer.tokens(1, 6)
    layer.cursor.begin(int32(0), int32(6))
    layer.verify(xBC, dt, int32(0))
    layer.cursor.commit(int32(0), int32(6))
    xBC, dt = layer.tokens(1, len(parents))
    before = fork(layer)
    layer.cursor.begin(int32(0), int32(len(parents)))
    out = layer.verify(xBC, dt, int32(0), parents=int32(*parents).view(1, -1))
    leaves = sorted(set(range(len(parents))) - set(parents))
    for leaf in leaves if len(leaves) < 12 else [leaves[0], leaves[len(leaves) // 2], leaves[-1]]:
        path = [leaf]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        assert_bitwise(out[:, path], one_token_calls(before, xBC, dt, path))


def test_trees_of_more_than_64_tokens_are_refused():
    layer = make_layer(max_window=65, nheads=1, headdim=8, dstate=16)
    layer.cursor.begin(int32(0), int32(2))
    xBC, dt = layer.tokens(1, 65)
    with pytest.raises(ValueError) as error:
        layer.verify(xBC, dt, int32(0), parents=torch.full((1, 65), -1, dtype=torch.int32))
    assert str(error.value) == "mamba2_verify: max_ntokens must be at most 64 with parents on CUDA; got 65"


@pytest.mark.parametrize(
    "header", [(2**31 - 1,) * 4, (5, 9, 0, 2), (5, 2, 3, 2), (5, 2, 0, 6), (5, 2, 2, 2), (5, 2, 0, 0), (4, 2, 2, 0)]
)
def test_slots_that_the_cpu_refuses_give_zeros_and_write_nothing(header):
    """A slot beyond the pool and one whose header is broken, beside a good one."""
    layer, alone = make_layer(nslots=4), make_layer(nslots=4)
    for each in (layer, alone):
        each.cursor.begin(int32(0, 2), int32(3, 3))
    layer.cursor.table[2, :4] = torch.tensor(header)
    layer.checkpoint.fill_(1.0)
    before = [each[1:].clone() for each in (layer.checkpoint, layer.rows, layer.dt_rows)]
    xBC, dt = layer.tokens(4, 5)
    slots = int32(4, 2, 0, -7)
    out = layer.verify(xBC, dt, slots)
    assert_bitwise(out[2:3], alone.verify(xBC[2:3], dt[2:3], int32(0)))
    assert not out[[0, 1, 3]].any()
    p = layer.parameters
    state, tail = materialize(
        *(p["conv_weight"], p["conv_bias"], p["A"], p["dt_bias"]),
        *(layer.checkpoint, layer.rows, layer.dt_rows, layer.cursor.table, slots),
        **layer.heads,
        fold_every=4,
    )
    if header[3] != 0:
        assert not state.any() and not tail.any()
    for old, new in zip(before, (layer.checkpoint, layer.rows, layer.dt_rows), strict=True):
        assert_bitwise(new[1:], old)


def test_batches_beyond_65535():
    layer = make_layer(nslots=2, nheads=1, headdim=4, dstate=16, max_window=1)
    xBC, dt = layer.tokens(65600, 1)
    slots = torch.full((65600,), -1, dtype=torch.int32)
    slots[0], slots[65599] = 1, 0
    layer.cursor.begin(int32(0, 1), int32(1, 1))
    alone = fork(layer)
    out = layer.verify(xBC, dt, slots)
    assert not out[1:-1].any()
    ends = [0, 65599]
    assert_bitwise(out[ends], alone.verify(xBC[ends], dt[ends], int32(1, 0)))
