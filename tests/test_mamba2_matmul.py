"""mamba2_verify in closed form (algorithm="matmul"), which CUDA kernels alone have: against the fp64 reference."""

import random

import pytest
import torch
from helpers import assert_bitwise, assert_close_to_ref
from test_mamba2_verify import CASES, int32, make_layer, walk

from python_ref.mamba2_verify import mamba2_verify_ref

pytestmark = pytest.mark.device_only


def run_walk(change, tree, steps=8, seeds=3, algorithm="matmul", **session):
    """Outputs and final checkpoints of the op, of the fp64 reference and of PyTorch at the op's dtypes, pooled."""
    outs, states = [[], [], []], [[], [], []]
    for seed in range(seeds):
        layer, wide, narrow = (make_layer(seed, **session, **change) for _ in range(3))
        layer.algorithm = algorithm
        wide.checkpoint = wide.checkpoint.double()
        generator = torch.Generator().manual_seed(seed + 10)
        for xBC, dt, parents, path, out in walk(layer, steps, random.Random(seed), generator, tree=tree):
            outs[0].append(out.flatten())
            for i, (other, compute) in enumerate(((wide, torch.float64), (narrow, torch.float32)), start=1):
                other.cursor.begin(int32(1), int32(xBC.shape[1]))
                options = dict(parents=parents, fold_every=layer.cursor.session.fold_every, compute_dtype=compute)
                ref = mamba2_verify_ref(*other.arguments(xBC, dt, int32(1)), **other.heads, **options)
                outs[i].append((ref if other is wide else ref.to(out.dtype)).flatten())
                other.cursor.commit(int32(1), int32(len(path)), int32(*path).view(1, -1))
        if int(layer.cursor.table[1, 0]) > int(layer.cursor.table[1, 1]):
            for kept, each in zip(states, (layer, wide, narrow), strict=True):
                kept.append(each.checkpoint[1].flatten())
    return [torch.cat(parts) for parts in outs], [torch.cat(parts) for parts in states]


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_values_against_fp64_reference(change, tree):
    outs, states = run_walk(change, tree)
    assert_close_to_ref(*outs)
    assert_close_to_ref(*states)
