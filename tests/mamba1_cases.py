"""For test_isa.py: a Mamba-1 layer's steps on sizes that fill vectors and on sizes that do not."""

import itertools

import torch

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer

SIZES = (
    dict(d_inner=96, headdim=16, x_heads=3, B_heads=3, C_heads=6),
    dict(d_inner=77, headdim=11, x_heads=7, B_heads=7, C_heads=11, dstate=48),
    dict(d_inner=21, dstate=64),
    dict(d_inner=130, dstate=32),
)


def outputs(dtype):
    """Outputs and checkpoint of three steps of two slots, chains and a tree; all but the first step fold."""
    results, slots, window = {}, torch.arange(2, dtype=torch.int32), torch.tensor([4, 2], dtype=torch.int32)
    tree = torch.tensor([[-1, 0, 0, 1], [-1, -1, 9, 9]], dtype=torch.int32)
    for i, sizes in enumerate(SIZES):
        state = dtype if i == 1 else torch.float32
        layer = make_mamba1_layer(2, **sizes, dtype=dtype, checkpoint_dtype=state, session=Session(max_window=4))
        for step in range(3):
            parents = tree if step == 1 else None
            layer.cursor.begin(slots, window)
            case = f"{dtype} sizes {i} step {step}"
            results[f"conv1d_verify {case}"] = layer.convolve(layer.raw(2, 4), slots, parents)
            results[f"mamba1_verify {case}"] = layer.verify(layer.tokens(2, 4), slots, parents)
            layer.cursor.commit(slots, torch.tensor([4, 1], dtype=torch.int32))
        results |= {f"mamba1_verify {case} checkpoint": layer.checkpoint}
        results |= {f"mamba1_materialize {case}": layer.materialize(slots)[0]}
    return results


def check_rows_with(check_rows):
    """64 sequences with ragged live rows and windows; none of the steps is committed, so each can be repeated."""
    for dtype, sizes in itertools.product((torch.float32, torch.bfloat16, torch.float16), SIZES[:3]):
        layer = make_mamba1_layer(64, **sizes, dtype=dtype, session=Session(max_window=3, fold_every=64))
        slots, counts = torch.arange(64, dtype=torch.int32), torch.tensor([1, 2, 3, 1] * 16, dtype=torch.int32)
        for step in range(4):
            layer.cursor.begin(slots, counts)
            layer.convolve(layer.raw(64, 3), slots), layer.verify(layer.tokens(64, 3), slots)
            if step < 3:
                layer.cursor.commit(slots, counts - (slots + step) % 2)
        names, tensors = zip(*layer.tokens(64, 3).items(), strict=True)
        check_rows(
            lambda *inputs, layer=layer, names=names: layer.verify(dict(zip(names, inputs)), inputs[-1]),  # noqa: B905
            *tensors,
            slots,
        )
        check_rows(lambda raw, slots, layer=layer: layer.convolve(raw, slots), layer.raw(64, 3), slots)
