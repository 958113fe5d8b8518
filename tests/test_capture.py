"""Captured operators: a replay does what the calls did, on what their memory holds by then."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from helpers import assert_bitwise, assert_refused
from speculation import NARROW, VOCAB, tiny_model
from test_step import int32
from torch.nn.utils import parametrize, prune

from llamba_kernels import ops
from llamba_kernels.cache import DecodeCache, Session
from llamba_kernels.capture import Capture
from llamba_kernels.models.step import StepModel

COS = SIN = torch.linspace(0, 1, 8 * 4).view(8, 4)


class Chain:
    """rope -> linear -> silu_mul on fixed memory."""

    def __init__(self, dtype=torch.float32):
        self.x = torch.randn(1, 3, 2, 8, dtype=dtype)
        self.positions = int32(0, 1, 2).view(1, 3)
        self.weight = torch.randn(5, 16, dtype=dtype)
        self.rotated, self.y, self.out = torch.empty_like(self.x), *(torch.empty(1, 3, 5, dtype=dtype) for _ in "yo")

    def run(self):
        ops.rope(self.x, COS, SIN, self.positions, out=self.rotated)
        ops.skinny_linear(self.rotated.flatten(-2), self.weight, out=self.y)
        ops.silu_mul(self.y, self.y, out=self.out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_is_the_calls_on_what_memory_holds_now(dtype):
    chain, eager = Chain(dtype), Chain(dtype)
    capture = Capture(chain.run, chain)
    for each in (chain, eager):
        generator = torch.Generator().manual_seed(1)
        each.x.copy_(torch.randn(each.x.shape, generator=generator))
        each.weight.copy_(torch.randn(each.weight.shape, generator=generator))
        each.positions.copy_(int32(5, 7, 0).view(1, 3))
    before = chain.out.clone()
    capture.replay()
    eager.run()
    assert_bitwise(chain.out, eager.out)
    assert not torch.equal(chain.out, before)


def test_a_replay_ends_at_the_call_that_refuses_with_its_sentence():
    chain = Chain()
    capture = Capture(chain.run, chain)
    chain.y.fill_(-1.0)
    chain.positions[0, 1] = 8
    with pytest.raises(ValueError, match="^rope: positions must be "):
        capture.replay()
    assert (chain.y == -1.0).all()  # the calls after it did not run
    chain.positions[0, 1] = 1
    capture.replay()
    assert not (chain.y == -1.0).any()


def test_timed_replay_counts_each_operator():
    chain, seconds = Chain(), Counter()
    capture = Capture(chain.run, chain)
    for _ in range(3):
        capture.timed_replay(seconds)
    assert set(seconds) == {"rope", "skinny_linear", "silu_mul"} and all(each > 0 for each in seconds.values())


def test_a_capture_that_fails_leaves_no_trace():
    chain = Chain()

    def fail():
        chain.run()
        raise KeyError("no")

    with pytest.raises(KeyError):
        Capture(fail, chain)
    seconds = Counter()
    Capture(lambda: ops.silu_mul(chain.y, chain.y, out=chain.out), chain).timed_replay(seconds)
    assert set(seconds) == {"silu_mul"}


def test_a_capture_within_a_capture_is_refused():
    chain = Chain()
    sentence = "Capture: body must not make a capture itself; got one that did"
    assert_refused(ValueError, sentence, Capture, lambda: Capture(chain.run, chain), chain)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_capture_is_not_copied(copied):
    """Two that free the same calls, or calls on memory of another process."""
    chain = Chain()
    capture = Capture(chain.run, None)
    sentence = "Capture: a capture must not be copied or pickled, because it holds addresses; got one to copy"
    assert_refused(TypeError, sentence, copied, capture)
    capture.replay()


def test_a_scan_whose_outputs_are_always_new_is_refused():
    x, A, B = torch.randn(1, 5, 4), -torch.rand(4, 16), torch.randn(1, 5, 16)

    def body():
        ops.selective_scan(x, x, A, B, B)

    sentence = "selective_scan: a capture must hold only operators of a step; got selective_scan"
    assert_refused(ValueError, sentence, Capture, body, x)


def test_operators_that_point_to_their_own_lists_are_refused():
    cursor, slots = torch.zeros(1, 20, dtype=torch.int32), int32(0)

    def body():
        ops.slot_copy(cursor, [torch.zeros(1, 4)], [], slots, slots, width=4)

    assert_refused(
        ValueError, "slot_copy: a capture must hold only operators of a step; got slot_copy", Capture, body, cursor
    )


def test_a_step_allocates_nothing():
    assert_a_step_allocates_nothing(tiny_model(**NARROW))


def assert_a_step_allocates_nothing(model):
    """From the second step of a shape on: torch's own allocator is watched while steps of two shapes are taken."""
    session = Session(max_window=4, fold_every=2, width=model.config.mamba_d_conv)
    step = StepModel(model, DecodeCache(model.config, 64, session))
    step.cache.prefill(model, 0, torch.tensor([1, 2, 3]))
    inputs = {window: torch.randint(50, (1, window)) for window in (1, 4)}
    slots, counts = int32(0), {window: int32(window) for window in (1, 4)}

    def steps():
        for window, tokens in inputs.items():
            step.cache.cursor.begin(slots, counts[window])
            step(slots, tokens)
            step.cache.cursor.commit(slots, counts[window])

    steps()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        steps()
    allocated = [event for event in profile.events() if event.cpu_memory_usage > 0]
    assert not allocated, (
        f"{len(allocated)} allocations, the largest of {max(e.cpu_memory_usage for e in allocated)} bytes"
    )


def test_bind_sees_other_parameters_and_an_old_capture_keeps_its_own():
    model = tiny_model(**NARROW)
    step = StepModel(model, DecodeCache(model.config, 64))

    def logits():
        step.cache.prefill(model, 0, torch.tensor([1, 2, 3]))
        step.cache.cursor.begin(int32(0), int32(1))
        return step(int32(0), torch.tensor([[4]])).clone()

    first = logits()
    head = model.lm_head.weight
    model.lm_head.weight = torch.nn.Parameter(2 * head.detach())
    assert_bitwise(logits(), first)  # the memory that the capture knows, and keeps
    step.bind()
    assert_bitwise(logits(), 2 * first)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


class Adapted(torch.nn.Module):
    """A Linear and what was trained beside it, as adapters are."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    weight, bias = property(lambda self: self.base.weight), property(lambda self: self.base.bias)

    def forward(self, u):
        return 2 * self.base(u)


@pytest.mark.parametrize(
    "change, got",
    [
        (lambda mlp: prune.l1_unstructured(mlp.up_proj, "weight", 0.5), "Linear"),
        (lambda mlp: parametrize.register_parametrization(mlp.up_proj, "weight", Doubled()), "ParametrizedLinear"),
        (lambda mlp: setattr(mlp, "up_proj", Adapted(mlp.up_proj)), "Adapted"),
    ],
    ids=["pruned", "parametrized", "adapter"],
)
def test_weights_that_a_step_cannot_read_where_they_lie_are_refused(change, got):
    """Their memory is another one after the next forward, or they are not all that the forward computes."""
    model = tiny_model(**NARROW)
    step = StepModel(model, DecodeCache(model.config, 64))
    change(model.model.layers[1].mlp)
    sentence = (
        "step: model must be of plain modules that own their weights, which a step reads where they lie (merge "
        f"adapters, remove parametrizations and pruning); got model.layers.1.mlp.up_proj ({got})"
    )
    assert_refused(ValueError, sentence, step.bind)
    assert_refused(ValueError, sentence, StepModel, model, DecodeCache(model.config, 64))


def test_a_model_that_was_moved_or_cast_is_refused():
    model = tiny_model(**NARROW)
    step = StepModel(model, DecodeCache(model.config, 64))
    sentence = "step: model must be float32 on cpu, as its buffers are; got bfloat16 on cpu"
    model.to(torch.bfloat16)
    assert_refused(ValueError, sentence, step.bind)
    sentence = "step: model must be float32 on cpu, as its buffers are; got float32 on meta"
    assert_refused(ValueError, sentence, StepModel, tiny_model(**NARROW).to("meta"), DecodeCache(model.config, 64))


def test_a_head_with_a_bias():
    model = tiny_model(**NARROW)
    head = torch.nn.Linear(32, VOCAB)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)
    tokens = torch.tensor([[1, 2, 3, 4]])
    step = StepModel(model, DecodeCache(model.config, 64))
    step.cache.prefill(model, 0, tokens[0, :3])
    step.cache.cursor.begin(int32(0), int32(1))
    torch.testing.assert_close(
        step(int32(0), tokens[:, 3:])[0, 0], model(tokens).logits[0, 3].detach(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5])
def test_projections_of_one_x_have_the_bits_that_they_have_alone(dtype, rows):
    """They share the threads, up to eight of them; what reads an output of theirs comes after them."""
    x = torch.randn(rows, 40, dtype=dtype)
    weights = [torch.randn(features, 40, dtype=dtype) for features in (1, 7, 96, 200, 64, 6, 12, 33, 18, 100, 40)]
    weights += [torch.randn(9, 40, dtype=dtype)]
    outs = [torch.empty(rows, len(weight), dtype=dtype) for weight in weights]
    biases = [torch.randn(len(weight), dtype=dtype) for weight in weights]

    def run():
        for weight, bias, out in list(zip(weights, biases, outs, strict=True))[:-1]:
            ops.skinny_linear(x, weight, bias, out=out)
        ops.skinny_linear(outs[-2], weights[-1], out=outs[-1])

    run()
    expected = [out.clone() for out in outs]
    capture, seconds = Capture(run, (x, weights)), Counter()
    for out in outs:
        out.fill_(float("nan"))
    capture.timed_replay(seconds)
    for out, alone in zip(outs, expected, strict=True):
        assert_bitwise(out, alone)
    with pytest.raises(ValueError, match="^skinny_linear: weight must "):  # a refused call is not recorded
        Capture(lambda: ops.skinny_linear(x, torch.randn(3, 39, dtype=dtype), out=outs[0]), x)
