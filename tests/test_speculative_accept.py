"""speculative_accept: against the reference, its extreme cases, what it must not touch, and what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_refused, sliced

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


@pytest.mark.parametrize("vocab", [100, 5000])
@pytest.mark.parametrize("accepted", range(1, 6))
def test_greedy_counts_the_drafts_before_the_first_wrong_one(accepted, vocab):
    logits = torch.randn(1, 5, vocab)
    best = logits[0].argmax(-1)
    drafts = best[:4].clone()
    drafts[accepted - 1 :][:1] += 1 if best[min(accepted, 4) - 1] < vocab - 1 else -1
    result = speculative_accept(logits, drafts[None], torch.tensor([5], dtype=torch.int32))
    assert result[0].item() == accepted and result[1].item() == best[accepted - 1].item()


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = [speculative_accept(*(x[b : b + 1] for x in inputs[:-1]), inputs[-1]) for b in range(BASE["batch"])]
    torch.set_num_threads(threads)
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


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


NAN = float("nan")
GOOD = dict(
    logits=torch.zeros(2, 3, 5),
    drafts=torch.ones(2, 2, dtype=torch.int64),
    ntokens=torch.tensor([3, 3], dtype=torch.int32),
    draft_probs=torch.full((2, 2, 5), 0.2),
    uniforms=torch.full((2, 3), 0.5, dtype=torch.float64),
    temperature=1.0,
)
NO_NAN = "logits must have a finite maximum and no NaN in every row"
SHARED = torch.zeros(3, dtype=torch.int64)
REFUSED = {
    "logits dtype": (
        dict(logits=torch.zeros(2, 3, 5).double()),
        TypeError,
        "logits must be float32, bfloat16 or float16; got float64",
    ),
    "logits dim": (dict(logits=torch.zeros(2, 5)), ValueError, "logits must have 3 dimensions; got shape (2, 5)"),
    "logits stride": (
        dict(logits=torch.zeros(2, 5, 3).mT),
        TypeError,
        "logits must have stride 1 in dimension -1; got 3",
    ),
    "no vocab": (
        dict(logits=torch.zeros(2, 3, 0), draft_probs=None),
        ValueError,
        "vocab must be 1 to 2147483647; got 0",
    ),
    "no window": (dict(logits=torch.zeros(2, 0, 5)), ValueError, "max_window must be 1 to 2147483647; got 0"),
    "drafts shape": (
        dict(drafts=torch.ones(2, 3, dtype=torch.int64)),
        ValueError,
        "drafts must have shape (batch, max_window - 1) = (2, 2); got (2, 3)",
    ),
    "drafts dtype": (dict(drafts=torch.ones(2, 2, dtype=torch.int32)), TypeError, "drafts must be int64; got int32"),
    "drafts stride": (
        dict(drafts=torch.ones(2, 2, dtype=torch.int64).t()),
        TypeError,
        "drafts must have stride 1 in dimension -1; got 2",
    ),
    "ntokens shape": (
        dict(ntokens=torch.ones(3, dtype=torch.int32)),
        ValueError,
        "ntokens must have shape (batch) = (2,); got (3,)",
    ),
    "ntokens dtype": (dict(ntokens=torch.ones(2, dtype=torch.int64)), TypeError, "ntokens must be int32; got int64"),
    "ntokens stride": (
        dict(ntokens=torch.ones(4, dtype=torch.int32)[::2]),
        TypeError,
        "ntokens must have stride 1 in dimension -1; got 2",
    ),
    "draft_probs shape": (
        dict(draft_probs=torch.zeros(2, 2, 4)),
        ValueError,
        "draft_probs must have shape (batch, max_window - 1, vocab) = (2, 2, 5); got (2, 2, 4)",
    ),
    "draft_probs dtype": (
        dict(draft_probs=torch.zeros(2, 2, 5).double()),
        TypeError,
        "draft_probs must be float32; got float64",
    ),
    "draft_probs stride": (
        dict(draft_probs=torch.zeros(2, 5, 2).mT),
        TypeError,
        "draft_probs must have stride 1 in dimension -1; got 2",
    ),
    "draft_probs greedy": (
        dict(uniforms=None),
        ValueError,
        "draft_probs must be None when uniforms is None (greedy); got a tensor",
    ),
    "uniforms shape": (
        dict(uniforms=torch.zeros(2, 2).double()),
        ValueError,
        "uniforms must have shape (batch, max_window) = (2, 3); got (2, 2)",
    ),
    "uniforms dtype": (dict(uniforms=torch.zeros(2, 3).half()), TypeError, "uniforms must be float64; got float16"),
    "uniforms stride": (
        dict(uniforms=torch.zeros(3, 2).double().t()),
        TypeError,
        "uniforms must have stride 1 in dimension -1; got 2",
    ),
    "temperature 0": (dict(temperature=0.0), ValueError, "temperature must be positive and finite; got 0"),
    "temperature -1": (dict(temperature=-1.0), ValueError, "temperature must be positive and finite; got -1"),
    "temperature nan": (dict(temperature=NAN), ValueError, "temperature must be positive and finite; got nan"),
    "accepted dtype": (
        dict(out=(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))),
        TypeError,
        "accepted must be int32; got int64",
    ),
    "accepted shape": (
        dict(out=(torch.zeros(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))),
        ValueError,
        "accepted must have shape (batch) = (2,); got (1,)",
    ),
    "next_token dtype": (
        dict(out=(torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))),
        TypeError,
        "next_token must be int64; got int32",
    ),
    "next_token shape": (
        dict(out=(torch.zeros(2, dtype=torch.int32), torch.zeros(3, dtype=torch.int64))),
        ValueError,
        "next_token must have shape (batch) = (2,); got (3,)",
    ),
    "accepted is ntokens": (
        dict(out=(GOOD["ntokens"], torch.zeros(2, dtype=torch.int64))),
        TypeError,
        "accepted must share no memory with ntokens; got one that does",
    ),
    "next_token in drafts": (
        dict(out=(torch.zeros(2, dtype=torch.int32), GOOD["drafts"][1])),
        TypeError,
        "next_token must share no memory with drafts; got one that does",
    ),
    "next_token overlaps accepted": (
        dict(out=(SHARED[1:].view(torch.int32)[:2], SHARED[:2])),
        TypeError,
        "next_token must share no memory with accepted; got one that does",
    ),
    "accepted stride": (
        dict(out=(torch.zeros(4, dtype=torch.int32)[::2], torch.zeros(2, dtype=torch.int64))),
        TypeError,
        "accepted must have stride 1 in dimension -1; got 2",
    ),
    "next_token stride": (
        dict(out=(torch.zeros(2, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)[::2])),
        TypeError,
        "next_token must have stride 1 in dimension -1; got 2",
    ),
}
REFUSED_DATA = {
    "logits nan": (
        dict(logits=changed(GOOD["logits"], (1, 2, 4), NAN)),
        ValueError,
        f"{NO_NAN}; got nan in row 2 of sequence 1",
    ),
    "logits inf": (
        dict(logits=changed(GOOD["logits"], (0, 1, 0), torch.inf)),
        ValueError,
        f"{NO_NAN}; got inf in row 1 of sequence 0",
    ),
    "logits all masked": (
        dict(logits=changed(GOOD["logits"], (1, 0), -torch.inf)),
        ValueError,
        f"{NO_NAN}; got -inf in row 0 of sequence 1",
    ),
    "drafts too large": (
        dict(drafts=changed(GOOD["drafts"], (1, 0), 5)),
        ValueError,
        "drafts must be below vocab = 5 and not negative; got 5 as draft 0 of sequence 1",
    ),
    "drafts negative": (
        dict(drafts=changed(GOOD["drafts"], (0, 1), -1)),
        ValueError,
        "drafts must be below vocab = 5 and not negative; got -1 as draft 1 of sequence 0",
    ),
    "ntokens 0": (
        dict(ntokens=torch.tensor([3, 0], dtype=torch.int32)),
        ValueError,
        "ntokens must be 1 to max_window = 3; got 0 for sequence 1",
    ),
    "ntokens 4": (
        dict(ntokens=torch.tensor([4, 3], dtype=torch.int32)),
        ValueError,
        "ntokens must be 1 to max_window = 3; got 4 for sequence 0",
    ),
    "draft_probs nan": (
        dict(draft_probs=changed(GOOD["draft_probs"], (1, 1, 1), NAN)),
        ValueError,
        "draft_probs must be 0 to 1; got nan for draft 1 of sequence 1",
    ),
    "uniforms 1": (
        dict(uniforms=changed(GOOD["uniforms"], (1, 2), 1.0)),
        ValueError,
        "uniforms must be at least 0 and below 1; got 1 in column 2 of sequence 1",
    ),
    "uniforms nan": (
        dict(uniforms=changed(GOOD["uniforms"], (0, 0), NAN)),
        ValueError,
        "uniforms must be at least 0 and below 1; got nan in column 0 of sequence 0",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    assert_nothing_written_and_refused(change, kind, sentence)


@pytest.mark.cpu_only
@pytest.mark.parametrize("change, kind, sentence", REFUSED_DATA.values(), ids=REFUSED_DATA)
def test_refusals_of_data(change, kind, sentence):
    assert_nothing_written_and_refused(change, kind, sentence)


@pytest.mark.device_only
@pytest.mark.parametrize("change, kind, sentence", REFUSED_DATA.values(), ids=REFUSED_DATA)
def test_bad_data_refuses_its_sequence_alone(change, kind, sentence):
    """On a GPU: accepted 0, next_token -1, and the other sequence is decided."""
    bad = int(sentence[sentence.index("sequence ") + 9 :])
    accepted, token = speculative_accept(**(GOOD | change))
    expected = [t.clone() for t in speculative_accept(**GOOD)]
    expected[0][bad], expected[1][bad] = 0, -1
    assert_bitwise(accepted, expected[0])
    assert_bitwise(token, expected[1])


@pytest.mark.device_only
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("q", [NAN, torch.inf, -torch.inf, -1.0, 1e30])
def test_draft_probs_that_are_none_still_give_a_token(q, u):
    """Only the draft's own q is looked at; the others may be anything, and the token exists."""
    draft_probs = torch.full((2, 2, 5), q)
    draft_probs[:, :, 1] = 1.0
    uniforms = torch.full((2, 3), u, dtype=torch.float64)
    uniforms[:, 0] = 0.9
    accepted, token = speculative_accept(**(GOOD | dict(draft_probs=draft_probs, uniforms=uniforms)))
    assert accepted.tolist() == [1, 1] and token.min() >= 0 and token.max() < 5


def assert_nothing_written_and_refused(change, kind, sentence):
    out = torch.full((2,), 77, dtype=torch.int32), torch.full((2,), 77, dtype=torch.int64)
    assert_refused(kind, f"speculative_accept: {sentence}", speculative_accept, **(GOOD | dict(out=out) | change))
    assert out[0].tolist() == out[1].tolist() == [77, 77]


def test_logits_without_dimensions_are_refused():
    """Also where the wrapper allocates out."""
    sentence = "speculative_accept: logits must have 3 dimensions; got shape ()"
    assert_refused(ValueError, sentence, speculative_accept, **(GOOD | dict(logits=torch.tensor(3.0))))


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
