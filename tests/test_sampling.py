"""Temperature, top-k and top-p keep the tokens that transformers' own warpers keep, and draws follow the law."""

import math

import pytest
import torch
from exact_law import warped
from helpers import assert_bitwise, assert_refused

from llamba_kernels.speculative.sampling import Sampling, draw

SETTINGS = [
    Sampling(1.0, 5),
    Sampling(0.7, None, 0.9),
    Sampling(1.3, 5, 0.5),
    Sampling(1.0, 50, 0.95),
    Sampling(1.0, 0, 0.3),
    Sampling(0.5, 3, 0.0),
    Sampling(2.0, 10**6, 0.99),
    Sampling(1.0, 1, 1.0),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("vocab", [2, 7, 61, 1000, 49152])
def test_the_kept_tokens_are_transformers(vocab, sampling):
    """Flat rows, of which top-p keeps most, and steep ones, of which it keeps few."""
    scale = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0]).unsqueeze(-1)
    logits = scale * torch.randn(6, vocab)
    expected = warped(logits, sampling)
    kept = sampling.mask_(logits.clone())
    assert torch.equal(kept > -math.inf, expected > -math.inf)
    assert torch.equal(kept[kept > -math.inf], logits[kept > -math.inf])
    torch.testing.assert_close(sampling.probabilities(kept).double(), expected.softmax(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ties(sampling, dtype):
    """As many tokens, and the same logits, as in transformers, whose sort leaves open which of those that tie it keeps.

    Here those with the highest ids are kept, which is what its warper does if its sort is stable; top-k keeps all.
    """
    logits = (2 * torch.randn(8, 500)).round_().to(dtype)  # some dozen values
    expected = warped(logits, sampling)
    kept = sampling.mask_(logits.clone())
    assert torch.equal(kept.sort(-1).values, logits.masked_fill(expected == -math.inf, -math.inf).sort(-1).values)
    for row, kept_row in zip(logits, kept > -math.inf, strict=True):
        ties = row == row[kept_row].min()
        stay = kept_row[ties].tolist()
        assert stay == sorted(stay)


def test_a_row_s_mask_does_not_depend_on_the_others():
    logits, sampling = torch.randn(5, 3000) * torch.tensor([0.1, 8, 1, 4, 2])[:, None], Sampling(0.8, None, 0.9)
    together = sampling.mask_(logits.clone())
    for i in range(5):
        assert_bitwise(sampling.mask_(logits[i : i + 1].clone()), together[i : i + 1])


def test_greedy_masks_nothing():
    logits = torch.randn(2, 9)
    assert_bitwise(Sampling(0.0, 2, 0.1).mask_(logits.clone()), logits)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-30, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_temperatures(temperature, dtype):
    """The likeliest token alone, or all that are kept alike; never NaN."""
    logits, sampling = (100 * torch.randn(3, 40)).to(dtype), Sampling(temperature, 30, 0.99)
    law = sampling.probabilities(sampling.mask_(logits))
    assert (law.sum(-1) - 1).abs().max() < 1e-5
    assert torch.equal(law.max(-1).indices, logits.max(-1).indices) if temperature < 1 else law.max() < 0.05


def test_draws_are_by_inverse_cdf():
    """Also where a token has no probability, and at both ends."""
    law = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).expand(6, 6)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(law, uniforms).tolist() == [1, 1, 3, 3, 4, 4]


REFUSED = [
    (dict(temperature=-0.1), ValueError, "temperature must be a number from 0 (greedy) up; got -0.1"),
    (dict(temperature=math.inf), ValueError, "temperature must be a number from 0 (greedy) up; got inf"),
    (dict(temperature=math.nan), ValueError, "temperature must be a number from 0 (greedy) up; got nan"),
    (dict(temperature="1"), TypeError, "temperature must be a number from 0 (greedy) up; got str"),
    (dict(top_k=-1), ValueError, "top_k must be None or an int from 0 (all) up; got -1"),
    (dict(top_k=2.5), TypeError, "top_k must be None or an int from 0 (all) up; got float"),
    (dict(top_k=True), TypeError, "top_k must be None or an int from 0 (all) up; got bool"),
    (dict(top_p=1.01), ValueError, "top_p must be a number from 0 to 1; got 1.01"),
    (dict(top_p=math.nan), ValueError, "top_p must be a number from 0 to 1; got nan"),
    (dict(top_p=None), TypeError, "top_p must be a number from 0 to 1; got NoneType"),
]


@pytest.mark.parametrize("options, kind, sentence", REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_refusals(options, kind, sentence):
    assert_refused(kind, f"Sampling: {sentence}", Sampling, **options)
