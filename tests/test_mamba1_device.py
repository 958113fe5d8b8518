"""The operators of a Mamba-1 layer on a device: what their bits must not depend on there, and what the CPU's tests
cannot see.
"""

import copy
import ctypes

import on_device
import pytest
import torch
from helpers import assert_bitwise
from test_mamba2_recurrent import TREE, TREES
from test_mamba2_verify import int32

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer

pytestmark = pytest.mark.device_only
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
GQA = dict(d_inner=96, x_heads=2, headdim=16, B_heads=2, C_heads=6)
SIZES = {
    "base": {},
    "bf16, bf16 state": dict(dtype=BF16, checkpoint_dtype=BF16),
    "fp16, odd, no bias, no gate": dict(dtype=F16, d_inner=131, bias=False, gate=False),
    "dstate 48": dict(dstate=48),
    "dstate 64, bf16": dict(dstate=64, dtype=BF16),
    "dstate 32, fp16 state": dict(dstate=32, checkpoint_dtype=F16),
    "un-repeated GQA, bf16": GQA | dict(dtype=BF16),
    "heads of 3 and of 7": dict(d_inner=63, x_heads=1, headdim=7, B_heads=21, C_heads=9),
    "a head per channel, width 2": dict(d_inner=132, B_heads=132, C_heads=66, width=2),
}


def make_layer(nslots=2, max_window=5, fold_every=4, max_rollback=0, width=4, **change):
    session = Session(max_window, fold_every, max_rollback, width)
    return make_mamba1_layer(nslots, session=session, generator=torch.Generator().manual_seed(0), **change)


def fork(layer):
    other = copy.copy(layer)
    for name in (*layer.BUFFERS, "cursor"):
        setattr(other, name, copy.deepcopy(getattr(layer, name)))
    return other


def some_tokens(layer, *shape, generator=None):
    """Random raw x, and the other inputs."""
    return layer.raw(*shape, generator=generator), layer.tokens(*shape, generator=generator)


def verify(layer, raw, tokens, slots, parents=None):
    """The outputs of the conv, which are the x of the SSM, and those of the SSM."""
    x = layer.convolve(raw, slots, parents)
    return x, layer.verify(tokens | {"x": x}, slots, parents)


def only(values, chosen):
    return {name: value if value is None else value[chosen] for name, value in values.items()}


def run_steps(layer, parents=None, batch=1):
    """Outputs of some steps of five tokens in slots 0 ..., the states, and the buffers; the same tokens each time."""
    generator, outs, slots = torch.Generator().manual_seed(1), [], int32(*range(batch))
    for _ in range(3):
        raw, tokens = some_tokens(layer, batch, 5, generator=generator)
        layer.cursor.begin(slots, int32(*[5] * batch))
        tree = None if parents is None else int32(*parents).repeat(batch, 1)
        outs += verify(layer, raw, tokens, slots, tree)
        path = int32(0, 1, 2).repeat(batch, 1) if parents is None else int32(0, 2, 3).repeat(batch, 1)
        layer.cursor.commit(slots, int32(*[3] * batch), path)
    states = layer.materialize(slots)
    return [each.nan_to_num() for each in (*outs, *states, *(buffer[:batch] for buffer in layer.buffers))]


@pytest.mark.parametrize("parents", [None, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("change", SIZES.values(), ids=SIZES)
def test_equals_the_cpu_within_round_off(change, parents):
    device = run_steps(make_layer(**change), parents)
    with on_device.cpu_kernels():
        cpu = run_steps(make_layer(**change), parents)
    coarsest = max(torch.finfo(change.get(name, F32)).eps for name in ("dtype", "checkpoint_dtype"))
    allowed = 64 * coarsest if coarsest == torch.finfo(F32).eps else 2 * coarsest  # a sum; one flip of a rounding
    for actual, expected in zip(device, cpu, strict=True):
        error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
        assert error <= allowed


@pytest.mark.parametrize("parents", [None, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("change", SIZES.values(), ids=SIZES)
def test_grids_and_schedules_do_not_change_bits(change, parents, simt):
    """Blocks of 128 threads for two sequences each, of 128, 64 and 32 threads for one."""
    expected, requested = None, set()
    for seed, multiprocessors in enumerate((1, 4, 20, 1000)):
        simt.llamba_simt_seed(ctypes.c_uint64(seed))
        layer = make_layer(nslots=17, **change)
        with on_device.another_device(multiprocessors=multiprocessors):
            results, sectors = on_device.count_sectors(lambda layer=layer: run_steps(layer, parents, batch=17))
        requested.add(sectors[2])
        expected = expected or results
        for actual, value in zip(results, expected, strict=True):
            assert_bitwise(actual, value)
    assert len(requested) > 1, "the grid did not change"


def test_a_batch_does_not_change_bits():
    together = run_steps(make_layer(nslots=3), batch=3)
    layer, generator, chosen = make_layer(nslots=3), torch.Generator().manual_seed(1), slice(2, 3)
    for step in range(3):
        raw, tokens = some_tokens(layer, 3, 5, generator=generator)
        layer.cursor.begin(int32(2), int32(5))
        alone = verify(layer, raw[chosen], only(tokens, chosen), int32(2))
        for actual, value in zip(alone, together[2 * step :], strict=False):
            assert_bitwise(actual, value[chosen])
        layer.cursor.commit(int32(2), int32(3))


def one_token_calls(layer, raw, tokens, path):
    """The outputs of the tokens of a path, one call each, on a copy of the layer."""
    layer, outs = fork(layer), []
    for node in path:
        one = (slice(None), slice(node, node + 1))
        layer.cursor.begin(int32(0), int32(1))
        outs.append(verify(layer, raw[one], only(tokens, one), int32(0)))
        layer.cursor.commit(int32(0), int32(1))
    return [torch.cat(each, 1) for each in zip(*outs, strict=True)]


@pytest.mark.parametrize("change", [dict(), dict(dtype=BF16, checkpoint_dtype=BF16, **GQA)], ids=["base", "bf16 GQA"])
def test_windows_and_live_rows_longer_than_the_shared_memory(change):
    """Chunks: live rows that end within one, a fold within one, a window of several."""
    layer = make_layer(max_window=40, fold_every=19, max_rollback=3, **change)
    for ntokens, accepted in ((7, 7), (40, 37), (8, 8), (9, 1), (33, 33), (1, 1), (32, 20)):
        raw, tokens = some_tokens(layer, 1, ntokens)
        before = fork(layer)
        layer.cursor.begin(int32(0), int32(ntokens))
        outs = verify(layer, raw, tokens, int32(0))
        for actual, value in zip(outs, one_token_calls(before, raw, tokens, range(ntokens)), strict=True):
            assert_bitwise(actual, value)
        layer.cursor.commit(int32(0), int32(accepted))
    assert int(layer.cursor.table[0, 0]) == 107


@pytest.mark.parametrize("parents", TREES.values(), ids=TREES)
@pytest.mark.parametrize("dstate", [16, 64])
def test_every_path_of_a_large_tree_equals_one_token_calls(parents, dstate):
    layer = make_layer(max_window=64, d_inner=32, dstate=dstate, checkpoint_dtype=BF16)
    layer.cursor.begin(int32(0), int32(6))
    verify(layer, *some_tokens(layer, 1, 6), int32(0))
    layer.cursor.commit(int32(0), int32(6))
    raw, tokens = some_tokens(layer, 1, len(parents))
    before = fork(layer)
    layer.cursor.begin(int32(0), int32(len(parents)))
    outs = verify(layer, raw, tokens, int32(0), int32(*parents).view(1, -1))
    leaves = sorted(set(range(len(parents))) - set(parents))
    for leaf in leaves if len(leaves) < 12 else [leaves[0], leaves[len(leaves) // 2], leaves[-1]]:
        path = [leaf]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        for actual, value in zip(outs, one_token_calls(before, raw, tokens, path), strict=True):
            assert_bitwise(actual[:, path], value)


def test_trees_of_more_than_64_tokens_are_refused():
    layer = make_layer(max_window=65)
    layer.cursor.begin(int32(0), int32(2))
    with pytest.raises(ValueError) as error:
        layer.verify(layer.tokens(1, 65), int32(0), torch.full((1, 65), -1, dtype=torch.int32))
    assert str(error.value) == "mamba1_verify: max_ntokens must be at most 64 with parents on CUDA; got 65"


@pytest.mark.parametrize(
    "header", [(2**31 - 1,) * 4, (5, 9, 0, 2), (5, 2, 3, 2), (5, 2, 0, 6), (5, 2, 2, 2), (5, 2, 0, 0), (4, 2, 2, 0)]
)
def test_slots_that_the_cpu_refuses_give_zeros_and_write_nothing(header):
    """A slot beyond the pool and one whose header is broken, beside a good one."""
    layer, alone, good = make_layer(nslots=4), make_layer(nslots=4), slice(2, 3)
    for each in (layer, alone):
        each.cursor.begin(int32(0, 2), int32(3, 3))
    layer.cursor.table[2, :4] = torch.tensor(header)
    layer.checkpoint.fill_(1.0)
    before, slots = [each[1:].clone() for each in layer.buffers], int32(4, 2, 0, -7)
    raw, tokens = some_tokens(layer, 4, 5)
    x = layer.convolve(raw, slots)
    fold_is_whole = header == (5, 2, 2, 2)  # only what keeps a state knows the session's W
    if not fold_is_whole:
        assert not x[[0, 1, 3]].any()
        assert_bitwise(layer.rows[1:], before[layer.BUFFERS.index("rows")])
    before[layer.BUFFERS.index("rows")] = layer.rows[1:].clone()
    out = layer.verify(tokens | {"x": x}, slots)
    for actual, value in zip((x, out), verify(alone, raw[good], only(tokens, good), int32(0)), strict=True):
        assert_bitwise(actual[good], value)
    assert not out[[0, 1, 3]].any()
    state, tail = layer.materialize(slots)
    if header[3] != 0:
        assert not state.any() and not tail.any()
    for old, new in zip(before, layer.buffers, strict=True):
        assert_bitwise(new[1:], old)


@pytest.mark.slow
def test_batches_beyond_65535(simt):
    layer = make_layer(nslots=2, d_inner=4, max_window=1)
    raw, tokens = some_tokens(layer, 65600, 1)
    slots = torch.full((65600,), -1, dtype=torch.int32)
    slots[0], slots[65599] = 1, 0
    layer.cursor.begin(int32(0, 1), int32(1, 1))
    alone, ends = fork(layer), [0, 65599]
    with on_device.another_device(multiprocessors=1 << 20):  # no sequences share a block
        outs = verify(layer, raw, tokens, slots)
    for actual, value in zip(outs, verify(alone, raw[ends], only(tokens, ends), int32(1, 0)), strict=True):
        assert not actual[1:-1].any()
        assert_bitwise(actual[ends], value)
