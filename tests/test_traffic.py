"""What mamba2_verify and mamba1_verify ask of global memory, counted by the executor in sectors of 32 bytes.

Necessary, for each sequence of a step: the state once, inputs and outputs of the K new tokens, K + live + width-1 whole
rows of xBC and dt (Mamba-1: K + live of x, dt and B); once, the parameters. A step that folds stores the state as well.
"""

import on_device
import pytest
import torch
from test_mamba2_verify import int32, make_layer

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer

pytestmark = pytest.mark.device_only
SECTOR, MULTIPROCESSORS = 32, 132
BASE = dict(nheads=80, headdim=64, dstate=128, dtype=torch.bfloat16)


def necessary(layer, window, live, batch, fold):
    state, row = layer.checkpoint[0].nbytes, layer.rows[0, 0].nbytes + layer.dt_rows[0, 0].nbytes
    outputs = layer.checkpoint[0, ..., 0].numel() * layer.rows.element_size()
    kept = window + live + layer.cursor.session.width - 1
    sequence = state * (1 + fold) + window * (row + outputs) + kept * row
    return (batch * sequence + sum(each.nbytes for each in layer.parameters.values())) / SECTOR


def measure(batch=1, window=4, live=4, fold=False, algorithm="recurrent", **change):
    """Distinct sectors and requested ones of one step, both over what is necessary."""
    layer = make_layer(nslots=batch, max_window=max(window, live), fold_every=live if fold else 64, **BASE | change)
    layer.algorithm = algorithm
    slots = open_step(layer, (layer.checkpoint, layer.rows, layer.dt_rows), batch, window, live, fold)
    xBC, dt = layer.tokens(batch, window)
    return count(lambda: layer.verify(xBC, dt, slots), necessary(layer, window, live, batch, fold))


def open_step(layer, buffers, batch, window, live, fold):
    """Opens a step of `window` tokens after `live` rows in every slot; returns the slots."""
    for buffer in buffers:
        buffer.zero_()
    slots = int32(*range(batch))
    layer.cursor.reset(slots, int32(*[3 * live if fold else 64 + live] * batch))
    if fold:  # a prompt leaves nothing to fold: one step of live tokens does
        layer.cursor.begin(slots, int32(*[live] * batch))
        layer.cursor.commit(slots, int32(*[live] * batch))
    layer.cursor.begin(slots, int32(*[window] * batch))
    assert layer.cursor.table[0, 1:3].tolist() == [live, live if fold else 0]
    return slots


def count(step, needed):
    with on_device.another_device(multiprocessors=MULTIPROCESSORS):
        _, (loaded, stored, requested) = on_device.count_sectors(step)
    return (loaded + stored) / needed, requested / needed


def measure_mamba1(batch=1, window=4, live=4, fold=False, **change):
    session = Session(max_window=max(window, live), fold_every=live if fold else 64)
    layer = make_mamba1_layer(batch, session=session, **dict(d_inner=8192, dtype=torch.bfloat16) | change)
    slots = open_step(layer, layer.buffers, batch, window, live, fold)
    tokens = layer.tokens(batch, window)
    row = sum(each[0, 0].nbytes for each in (layer.x_rows, layer.dt_rows, layer.B_rows))
    inputs = sum(each.nbytes for each in tokens.values()) + tokens["x"].nbytes  # and outputs
    sequences = batch * (layer.checkpoint[0].nbytes * (1 + fold) + (window + live) * row) + inputs
    needed = (sequences + sum(each.nbytes for each in layer.parameters.values())) / SECTOR
    return count(lambda: layer.verify(tokens, slots), needed)


@pytest.fixture(autouse=True)
def executor(request):
    if request.config.getoption("--device") != "simt":
        pytest.skip("only the executor counts")


@pytest.mark.parametrize("algorithm", ["recurrent", "matmul"])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("fold", [False, True])
def test_little_more_than_what_is_necessary(batch, fold, algorithm):
    distinct, requested = measure(batch=batch, fold=fold, algorithm=algorithm)
    assert distinct <= 1.05 and requested <= 1.5


SHAPES = {
    "K 1, live 0": dict(window=1, live=0),
    "K 1, live 4": dict(window=1, live=4),
    "K 8, live 8": dict(window=8, live=8),
    "K 16, live 16": dict(window=16, live=16),
    "bf16 state": dict(checkpoint_dtype=torch.bfloat16),
    "fp32 inputs": dict(dtype=torch.float32),
    "8 groups": dict(nheads=128, B_heads=8, C_heads=8),
    "dstate 64": dict(dstate=64),
    "dstate 256": dict(nheads=40, dstate=256),
    "dstate 16": dict(nheads=24, dstate=16),
    "headdim 80": dict(nheads=64, headdim=80),
    "9 heads over 3": dict(nheads=9, x_heads=3, B_heads=3, C_heads=9, dstate=64),
}


@pytest.mark.slow
def test_print_other_shapes(capsys):
    """Nothing is promised of these; the state is read once in all of them."""
    algorithms = ("recurrent", "matmul")
    lines = [f"{'80 heads of 64 x 128, K 4, live 4, but':40}  batch  distinct, requested over what is necessary: "]
    lines[0] += ", ".join(algorithms)
    for name, change in {"": {}, "a fold": dict(fold=True), **SHAPES}.items():
        for batch in (1, 4):
            counts = [measure(batch=batch, algorithm=algorithm, **change) for algorithm in algorithms]
            lines.append(f"{name:40} {batch:6}" + "".join(f"{d:10.3f} {r:5.2f}" for d, r in counts))
            assert max(distinct for distinct, _ in counts) <= 1.1
    with capsys.disabled():
        print("", *lines, sep="\n")


@pytest.mark.parametrize("batch, most", [(1, 1.2), (2, 1.4)])
@pytest.mark.parametrize("fold", [False, True])
def test_mamba1_loads_and_stores_what_is_necessary(batch, most, fold):
    """Each sequence asks for A, which is as large as its state."""
    distinct, requested = measure_mamba1(batch=batch, fold=fold)
    assert distinct <= 1.001 and requested <= most


MAMBA1_SHAPES = {
    "K 1, live 0": dict(window=1, live=0),
    "K 1, live 2": dict(window=1, live=2),
    "K 8, live 8": dict(window=8, live=8),
    "bf16 state": dict(checkpoint_dtype=torch.bfloat16),
    "fp32 inputs": dict(dtype=torch.float32),
    "64 B heads, 256 C heads": dict(d_inner=4096, B_heads=64, C_heads=256),
    "dstate 64": dict(d_inner=2048, dstate=64),
}


@pytest.mark.slow
def test_print_mamba1_shapes(capsys):
    lines = [f"{'Mamba-1: 8192 channels x 16, K 4, live 4, but':40}  batch  distinct, requested over what is necessary"]
    for name, change in {"": {}, "a fold": dict(fold=True), **MAMBA1_SHAPES}.items():
        for batch in (1, 4, 64):
            distinct, requested = measure_mamba1(batch=batch, **change)
            lines.append(f"{name:40} {batch:6}{distinct:10.3f} {requested:5.2f}")
            assert distinct <= 1.005
    with capsys.disabled():
        print("", *lines, sep="\n")
