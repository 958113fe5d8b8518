"""speculative_accept: against the reference, its extreme cases, and what it must not touch."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, sliced, threads

from llamba_kernels.ops import speculative_accept
from llamba_kernels.testing import make_speculative_accept_inputs
from python_ref.speculative_accept import speculative_accept_ref

BASE = dict(batch=200, max_window=4, vocab=50, sampled=True, certain=False, dtype=torch.float32)
CASES = {
    "base": {},
    "greedy": dict(sampled=False),
    "certain drafts": dict(certain=True),
    "bf16": dict(dtype=torch.bfloat16),
    "bf16 greedy": dict(sampled=False, dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "fp16 greedy": dict(sampled=False, dtype=torch.float16),
    "window 1": dict(max_window=1),
    "window 1 greedy": dict(max_window=1, sampled=False),
    "vocab 1": dict(vocab=1),
    "vocab 2 greedy": dict(vocab=2, sampled=False),
    "vocab 16": dict(vocab=16),
    "vocab 17": dict(vocab=17),
    "vocab 1023": dict(batch=20, vocab=1023),
    "vocab 1025 bf16": dict(batch=20, vocab=1025, dtype=torch.bfloat16),
    "smollm2-135m": dict(batch=5, max_window=8, vocab=49152),
    "no sequences": dict(batch=0),
}


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_equals_reference(change):
    """Every decision; inputs beyond ntokens are NaN or no token ids."""
    inputs = make_speculative_accept_inputs(**(BASE | change))
    accepted, next_token = speculative_accept(*inputs)
    expected = speculative_accept_ref(*inputs)
    assert_bitwise(accepted, expected[0])
    assert_bitwise(next_token, expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [7, 1030, 5000])
def test_greedy_takes_the_lowest_index_of_ties(vocab, dtype):
    """Also among +0 and -0, and with nearly everything masked."""
    logits = torch.full((4, 1, vocab), -torch.inf, dtype=dtype)
    ties = [vocab // 2, vocab - 1]
    logits[0, 0, ties] = 3.0
    logits[1, 0, ties] = torch.tensor([-0.0, 0.0], dtype=dtype)
    logits[2, 0] = -5.0
    logits[3, 0, -1] = -6e4
    _, token = speculative_accept(logits, torch.empty(4, 0, dtype=torch.int64), torch.ones(4, dtype=torch.int32))
    assert token.tolist() == [vocab // 2, vocab // 2, 0, vocab - 1]


@pytest.mark.parametrize("vocab", [100, 3000])
@pytest.mark.parametrize("accepted", range(1, 6))
def test_greedy_counts_the_drafts_before_the_first_wrong_one(accepted, vocab):
    logits = torch.randn(8, 5, vocab)
    best = logits.argmax(-1)
    drafts = best[:, :4].clone()
    if accepted < 5:
        drafts[:, accepted - 1] = (drafts[:, accepted - 1] + 1) % vocab
    counts, tokens = speculative_accept(logits, drafts, torch.full((8,), 5, dtype=torch.int32))
    assert counts.tolist() == [accepted] * 8 and tokens.tolist() == best[:, accepted - 1].tolist()


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-53])
def test_masked_tokens_are_never_sampled(u):
    """Not even by the extreme uniforms; neither from p nor from (p - q)+."""
    for vocab in (5, 1024, 3000):
        logits = torch.full((2, 2, vocab), -torch.inf)
        logits[:, :, vocab // 2 : vocab // 2 + 2] = torch.tensor([1.0, 0.0])
        q = torch.zeros(2, 1, vocab)
        q[:, 0, 0] = 1.0  # a draft that the target masks
        uniforms = torch.full((2, 2), u, dtype=torch.float64)
        ntokens = torch.tensor([1, 2], dtype=torch.int32)
        accepted, token = speculative_accept(logits, torch.zeros(2, 1, dtype=torch.int64), ntokens, q, uniforms)
        assert accepted.tolist() == [1, 1]
        assert token.tolist() == [vocab // 2 + (u > 0.5)] * 2


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-39, 1e-38, 1e39, 1e300])
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-53])
def test_temperatures_that_float_cannot_invert(temperature, u):
    """The argmax, or all unmasked tokens alike."""
    logits = torch.tensor([[[0.0, 5.0, -torch.inf, 1.0]]])
    no_drafts, ntokens = torch.empty(1, 0, dtype=torch.int64), torch.ones(1, dtype=torch.int32)
    uniforms = torch.full((1, 1), u, dtype=torch.float64)
    _, token = speculative_accept(logits, no_drafts, ntokens, None, uniforms, temperature)
    assert token.item() == (1 if temperature < 1 else {0.0: 0, 0.5: 1}.get(u, 3))


def test_rejection_by_rounding_alone_samples_the_target():
    """q = p up to rounding and u next to 1: (p - q)+ may be nothing at all, and p is right then."""
    logits = torch.randn(400, 2, 9)
    q = torch.softmax(logits[:, :1].double(), -1).float() * (1 + 1e-6)
    drafts = torch.randint(0, 9, (400, 1))
    uniforms = torch.tensor([[1 - 2.0**-53, 0.5]], dtype=torch.float64).expand(400, 2).contiguous()
    ntokens = torch.full((400,), 2, dtype=torch.int32)
    accepted, token = speculative_accept(logits, drafts, ntokens, q.clamp(max=1), uniforms)
    assert (accepted == 1).sum() > 100 and token.min() >= 0 and token.max() < 9


def test_rows_strides_and_bystanders():
    """One sequence alone, on one thread, or out of larger tensors: the same decisions; nothing else is written."""
    inputs = make_speculative_accept_inputs(**(BASE | dict(vocab=3000)))
    expected = speculative_accept(*inputs)
    out = [Surrounded(torch.zeros_like(tensor), fill=77) for tensor in expected]
    result = speculative_accept(*(sliced(x) for x in inputs[:-1]), inputs[-1], out=tuple(o.inner for o in out))
    for surrounded, given, values in zip(out, result, expected, strict=True):
        assert given is surrounded.inner
        assert_bitwise(given, values)
        surrounded.assert_surroundings_untouched()
    with threads(1):
        alone = [speculative_accept(*(x[b : b + 1] for x in inputs[:-1]), inputs[-1]) for b in range(BASE["batch"])]
    assert_bitwise(torch.cat([accepted for accepted, _ in alone]), expected[0])
    assert_bitwise(torch.cat([token for _, token in alone]), expected[1])


def test_float32_uniforms_are_widened():
    inputs = list(make_speculative_accept_inputs(**BASE))
    inputs[4] = inputs[4].float()
    narrow = speculative_accept(*inputs)
    inputs[4] = inputs[4].double()
    wide = speculative_accept(*inputs)
    assert_bitwise(narrow[0], wide[0])
    assert_bitwise(narrow[1], wide[1])


@pytest.mark.parametrize("sampled", [True, False])
def test_opcheck(sampled):
    inputs = make_speculative_accept_inputs(**(BASE | dict(batch=3, sampled=sampled)))
    out = torch.empty(3, dtype=torch.int32), torch.empty(3, dtype=torch.int64)
    torch.library.opcheck(torch.ops.llamba.speculative_accept.default, (*inputs, *out))


def test_compiles_without_graph_break():
    inputs = make_speculative_accept_inputs(**BASE)
    compiled = torch.compile(speculative_accept, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(compiled(*inputs), speculative_accept(*inputs), strict=True):
        assert_bitwise(actual, expected)
