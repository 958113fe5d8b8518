"""What only a GPU can show: streams, graphs, more than one kernel under way. `pytest --device cuda` runs this."""

import copy

import on_device
import pytest
import torch
from helpers import assert_bitwise
from test_mamba2_verify import int32, make_layer

from llamba_kernels.cache import Session
from llamba_kernels.testing_mamba1 import make_mamba1_layer

pytestmark = pytest.mark.device_only
BATCH, WINDOW = 3, 5


@pytest.fixture(autouse=True)
def gpu(request):
    if request.config.getoption("--device") != "cuda":
        pytest.skip("only a GPU has streams and graphs")


def on_gpu(layer):
    """The layer with all of its tensors on the GPU."""
    layer = copy.copy(layer)
    layer.parameters = {name: value if value is None else value.cuda() for name, value in layer.parameters.items()}
    for name in ("checkpoint", "rows", "dt_rows"):
        setattr(layer, name, getattr(layer, name).cuda())
    layer.cursor = copy.copy(layer.cursor)
    layer.cursor.table = layer.cursor.table.cuda()
    return layer


def gpu_layer(algorithm):
    layer = make_layer(2, nslots=BATCH + 1, dtype=torch.bfloat16, dstate=128)
    layer.algorithm = algorithm
    return on_gpu(layer)


class Steps:
    """A step of all slots with fixed buffers: what a graph captures."""

    def __init__(self, layer):
        self.layer = layer
        self.xBC, self.dt = (each.cuda() for each in layer.tokens(BATCH, WINDOW))
        self.slots, self.ntokens = int32(2, -1, 0).cuda(), int32(5, 1, 3).cuda()
        self.accepted, self.path = int32(3, 0, 2).cuda(), int32(*range(WINDOW)).repeat(BATCH, 1).cuda()
        self.out = torch.empty(BATCH, WINDOW, *layer.checkpoint.shape[1:3], dtype=torch.bfloat16, device="cuda")

    def run(self):
        self.layer.cursor.begin(self.slots, self.ntokens)
        self.layer.verify(self.xBC, self.dt, self.slots, out=self.out)
        self.layer.cursor.commit(self.slots, self.accepted, self.path)

    def feed(self, seed):
        generator = torch.Generator("cuda").manual_seed(seed)
        self.xBC.copy_(torch.randn(self.xBC.shape, generator=generator, device="cuda"))
        self.dt.copy_(torch.randn(self.dt.shape, generator=generator, device="cuda"))


def results(layer, runs):
    """Outputs of some steps; `runs` makes one step out of a Steps."""
    steps, outs = Steps(layer), []
    step = runs(steps)
    for seed in range(4):
        steps.feed(seed)
        step()
        outs.append(steps.out.clone())
    torch.cuda.synchronize()
    return [*outs, layer.checkpoint.nan_to_num(), layer.cursor.table]


@pytest.mark.parametrize("algorithm", ["recurrent", "matmul"])
def test_a_step_is_captured_in_a_graph(algorithm):
    """Captured on padding slots only, as warm-up must be; replayed with other slots, tokens and counts."""

    def captured(steps):
        slots = steps.slots.clone()
        steps.slots.fill_(-1)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            steps.run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            steps.run()
        steps.slots.copy_(slots)
        return graph.replay

    plain = results(gpu_layer(algorithm), lambda steps: steps.run)
    for graph, eager in zip(results(gpu_layer(algorithm), captured), plain, strict=True):
        assert_bitwise(graph.cpu(), eager.cpu())
    assert any(bool(out.any()) for out in plain[:4])


def test_a_mamba1_step_is_captured_in_a_graph():
    """As above, of conv1d_verify and mamba1_verify; the replay equals the same step made eagerly."""
    layers = [make_mamba1_layer(BATCH, session=Session(WINDOW), dtype=torch.bfloat16) for _ in range(2)]
    x, tokens = layers[0].raw(BATCH, WINDOW).cuda(), layers[0].tokens(BATCH, WINDOW)
    tokens = {name: value.cuda() for name, value in tokens.items()}
    slots, ntokens, accepted = (int32(*each).cuda() for each in ((-1, -1, -1), (5, 1, 3), (3, 1, 2)))
    outs = []
    for layer in layers:
        layer.conv, layer.parameters = ({k: v.cuda() for k, v in p.items()} for p in (layer.conv, layers[0].parameters))
        for name in layer.BUFFERS:
            setattr(layer, name, getattr(layer, name).cuda())
        layer.cursor = copy.copy(layer.cursor)
        layer.cursor.table = layer.cursor.table.cuda()
    layers[1].conv = layers[0].conv

    def step(layer):
        layer.cursor.begin(slots, ntokens)
        out = layer.verify(tokens | {"x": layer.convolve(x, slots)}, slots)
        layer.cursor.commit(slots, accepted)
        return out

    step(layers[0])
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = step(layers[0])
    slots.copy_(int32(2, -1, 0))
    for _ in range(3):
        graph.replay()
        outs.append((captured.clone(), step(layers[1])))
    torch.cuda.synchronize()
    for replayed, eager in outs:
        assert_bitwise(replayed.cpu(), eager.cpu())
    assert bool(outs[0][0].any())


def test_operators_run_on_the_current_stream():
    """A step behind a long kernel on a side stream must wait for it: it reads what that kernel's successor writes."""
    layer = gpu_layer("recurrent")
    expected = results(layer, lambda steps: steps.run)[0]
    side, steps = torch.cuda.Stream(), Steps(gpu_layer("recurrent"))
    steps.xBC.zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # clocks: about a tenth of a second
        steps.feed(0)
        steps.run()
    side.synchronize()
    assert_bitwise(steps.out.cpu(), expected.cpu())


def test_the_cpu_and_the_gpu_agree():
    """Device tensors as a user has them, not the copies that the other tests make."""
    layer = make_layer(2, nslots=2)
    there = on_gpu(layer)
    there.algorithm = "recurrent"
    xBC, dt = layer.tokens(1, 4)
    layer.cursor.begin(int32(1), int32(4))
    there.cursor.begin(int32(1).cuda(), int32(4).cuda())
    ours = there.verify(xBC.cuda(), dt.cuda(), int32(1).cuda())
    assert ours.is_cuda
    with on_device.cpu_kernels():
        expected = layer.verify(xBC, dt, int32(1))
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-5)
