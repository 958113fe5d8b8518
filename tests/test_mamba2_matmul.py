"""mamba2_verify in closed form (algorithm="matmul"), which CUDA kernels alone have: against the fp64 reference."""

import on_device
import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_close_to_ref, assert_refused, sliced
from test_mamba2_verify import CASES, NAN, int32, make_layer, poison_free_rows, run_walk

from llamba_kernels.ops.mamba2_verify import choose_algorithm

pytestmark = pytest.mark.device_only


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change, tree):
    outs, states = run_walk(change, tree, algorithm="matmul")
    assert_close_to_ref(*outs)
    assert_close_to_ref(*states)


def test_batch_padding_bystanders_and_sentinels():
    """A mixed batch with padding equals each sequence alone; nothing outside what the op owns changes a bit."""
    layer, alone = (make_layer(nslots=4, dtype=torch.bfloat16, headdim=80, dstate=96) for _ in range(2))
    layer.algorithm = alone.algorithm = "matmul"
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
    surrounded = Surrounded(torch.zeros(3, 5, layer.nheads, 80, dtype=torch.bfloat16), fill=777.0)
    out = surrounded.inner
    for each in (layer, alone):
        each.cursor.begin(slots, ntokens)
    for slot in (3, 0):
        poison_free_rows(layer, slot)
    layer.verify(xBC, dt, slots, out=out)
    for i in (2, 0):
        n = int(ntokens[i])
        assert_bitwise(out[i : i + 1, :n], alone.verify(xBC[i : i + 1, :n], dt[i : i + 1, :n], slots[i : i + 1]))
    assert not out[1].any() and not out[0, 2:].any() and not out[2, 4:].any(), "rows beyond ntokens must be zero"
    surrounded.assert_surroundings_untouched()
    for before, after in zip(bystanders, (layer.checkpoint, layer.rows, layer.dt_rows), strict=True):
        assert_bitwise(after[[1, 2]], before)


@pytest.mark.parametrize("checkpoint_dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_every_shape_give_the_same_bits(checkpoint_dtype, simt):
    """One head or several a block, one tile or a whole head, states by loads or by bulk copies."""
    results = {}
    whole = 227 * 1024
    # The third: bulk copies would not fit.
    for device in (
        (1, 80, whole),
        (1, 90, whole),
        (1, 90, 40_000),
        (4, 90, whole),
        (100, 80, whole),
        (1000, 90, whole),
    ):
        facts = dict(zip(("multiprocessors", "arch", "shared_bytes"), device, strict=True))
        # on one multiprocessor four heads a block: stages are used again
        sizes = dict(nheads=16, headdim=32, dstate=128)
        change = dict(dtype=torch.bfloat16, checkpoint_dtype=checkpoint_dtype, nslots=4, **sizes)
        layer, generator = make_layer(3, **change), torch.Generator().manual_seed(7)
        layer.algorithm, outs = "matmul", []
        for ntokens, accepted in (((5, 2, 4), (5, 2, 1)), ((1, 5, 5), (1, 3, 5)), ((5, 5, 5), (4, 0, 1))):
            layer.cursor.begin(int32(2, 0, 1), int32(*ntokens))
            with on_device.another_device(**facts):
                outs.append(layer.verify(*layer.tokens(3, 5, generator=generator), int32(2, 0, 1)))
            layer.cursor.commit(int32(2, 0, 1), int32(*accepted))
        results[device] = torch.stack(outs), layer.checkpoint
    first, *rest = results.values()
    for outs, checkpoint in rest:
        assert_bitwise(outs, first[0])
        assert_bitwise(checkpoint, first[1])


def test_a_chain_in_a_batch_that_fills_the_device(request):
    """Four heads a block, on Hopper by bulk copies, whose stages are used again; fresh, folding and padding slots."""
    batch = 272 if request.config.getoption("--device") == "cuda" else 9  # eight blocks for each multiprocessor
    change = dict(nslots=batch, nheads=32, headdim=16, dstate=128, dtype=torch.bfloat16)
    layer, alone = make_layer(2, **change), make_layer(2, **change)
    layer.algorithm = alone.algorithm = "matmul"
    generator, few = torch.Generator().manual_seed(8), (0, 5, batch - 1)
    slots, fresh = torch.arange(batch, dtype=torch.int32), torch.tensor([5])
    slots[3] = -1
    ntokens = torch.randint(1, 6, (batch,), generator=generator, dtype=torch.int32)
    for _ in range(3):
        xBC, dt = layer.tokens(batch, 5, generator=generator)
        for each in (layer, alone):
            each.cursor.reset(fresh.int())
            each.cursor.begin(slots, ntokens)
        out = layer.verify(xBC, dt, slots)
        for i in few:
            assert_bitwise(out[i : i + 1], alone.verify(xBC[i : i + 1], dt[i : i + 1], slots[i : i + 1]))
        assert not out[3].any()
        for each in (layer, alone):
            each.cursor.commit(slots, ntokens)
    assert_bitwise(layer.checkpoint[[0, batch - 1]], alone.checkpoint[[0, batch - 1]])


@pytest.mark.parametrize("change", [{}, dict(dtype=torch.bfloat16)], ids=["float32", "bfloat16"])
def test_a_float32_checkpoint_counts_as_float32(change):
    """Outputs within 4x of the recurrent form's own round-off, before they are rounded to the activation dtype.

    To see that with 16-bit activations too, D is absent and the state is large: what is compared is the checkpoint.
    """
    errors = {}
    for algorithm in ("matmul", "recurrent"):
        outs, states = run_walk(change | dict(dstate=128, nheads=4), tree=False, steps=12, algorithm=algorithm)
        parts = [states] if change else [outs, states]
        errors[algorithm] = [float((actual.double() - wide).abs().max()) for actual, wide, _ in parts]
    for matmul, recurrent in zip(errors["matmul"], errors["recurrent"], strict=True):
        assert 0 < matmul <= 4 * recurrent, errors


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("change", [dict(dtype=torch.bfloat16, dstate=128), dict()], ids=["bf16", "float32"])
def test_windows_and_live_rows_of_64(change, tree):
    change = change | dict(nheads=2, headdim=32)
    outs, states = run_walk(change, tree, algorithm="matmul", steps=5, seeds=2, max_window=64, fold_every=1, least=60)
    assert_close_to_ref(*outs)
    assert_close_to_ref(*states)


def test_strides_and_pointers_that_allow_no_vectors():
    """The same bits from a layer whose buffers are slices of larger ones at odd offsets."""
    plain, odd = make_layer(5, dtype=torch.bfloat16), make_layer(5, dtype=torch.bfloat16)
    for name in ("checkpoint", "rows", "dt_rows"):
        setattr(odd, name, Surrounded(getattr(odd, name)).inner)
    odd.parameters = {
        name: sliced(value) if value.dim() == 2 or name == "conv_bias" else value
        for name, value in odd.parameters.items()
    }
    plain.algorithm = odd.algorithm = "matmul"
    generator = torch.Generator().manual_seed(3)
    for ntokens, accepted in ((5, 5), (4, 3), (5, 0), (1, 1)):
        xBC, dt = plain.tokens(1, ntokens, generator=generator)
        outs = []
        for layer, tokens in ((plain, (xBC, dt)), (odd, (sliced(xBC), sliced(dt)))):
            layer.cursor.begin(int32(1), int32(ntokens))
            outs.append(layer.verify(*tokens, int32(1)))
            layer.cursor.commit(int32(1), int32(accepted))
        assert_bitwise(*outs)
    assert_bitwise(odd.checkpoint, plain.checkpoint)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dstate", [64, 128, 256])
def test_what_auto_chooses_fits_every_gpu(dtype, dstate, simt):
    """The largest session that choose_algorithm gives to the closed form, on the GPU with the least shared memory."""
    layer = make_layer(max_window=16, fold_every=17, nheads=1, headdim=128, dstate=dstate, dtype=dtype)
    assert choose_algorithm("cuda", dtype, layer.rows.shape[1], 4, 17) == "matmul"
    layer.algorithm = "matmul"
    layer.cursor.begin(int32(1), int32(16))
    with on_device.another_device(multiprocessors=1, shared_bytes=101_376, arch=86):
        layer.verify(*layer.tokens(1, 16), int32(1))


def test_windows_beyond_the_limits_are_refused(simt):
    layer = make_layer(max_window=65)
    layer.algorithm = "matmul"
    layer.cursor.begin(int32(1), int32(1))
    sentence = "mamba2_verify: max_ntokens must be at most 64 with algorithm matmul; got 65"
    assert_refused(ValueError, sentence, layer.verify, *layer.tokens(1, 65), int32(1))
    rule = "mamba2_verify: rows per slot must fit the 20000 bytes of shared memory of this GPU's blocks"
    rule += r" with algorithm matmul; got 136 rows, for which \d+ bytes are needed"
    with on_device.another_device(shared_bytes=20_000), pytest.raises(ValueError, match=f"^{rule}$"):
        layer.verify(*layer.tokens(1, 1), int32(1))
