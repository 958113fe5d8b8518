"""Sampled output has exactly the target's law: the joint law of three consecutive tokens, and what the test can see.

Every sample comes from the decoder itself, hundreds of sequences at once. 40,000 samples with a draft model, 10,000 of
the rest, which is enough to see the faults (p < 1e-9); 200,000 of all with -m slow.
"""

import pytest
import torch
from exact_law import joint_law, p_value
from speculation import tiny_model

from llamba_kernels.cache import Cursor
from llamba_kernels.ops import speculative_accept
from llamba_kernels.speculative import ModelDraft, PromptLookup, SpeculativeDecoder, decode, first_layers, model_draft
from llamba_kernels.speculative.sampling import Sampling, draw

VOCAB, PROMPT = 6, [1, 2, 3, 1, 2]
SAMPLING = Sampling(temperature=0.8, top_k=4, top_p=0.9)
WINDOW, FIRST, COUNT = 3, 1, 3  # tokens 2 to 4: the first comes from the prefill, then a whole window may be accepted
ALPHA, CAUGHT = 1e-3, 1e-9
SIZES = [10_000, pytest.param(200_000, marks=pytest.mark.slow)]


TINY = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 16, "initializer_range": 0.5}
TINY |= {"num_attention_heads": 1, "num_key_value_heads": 1}


def tiny_target():
    return tiny_model(["mamba2", "attention"], seed=6, **TINY)


@pytest.fixture(scope="module")
def target():
    return tiny_target()


@pytest.fixture(scope="module")
def law(target):
    return joint_law(target, PROMPT, SAMPLING, FIRST, COUNT)


@pytest.fixture(scope="module")
def other(target):
    """Another model, near enough to the target to be right about every second time."""
    model = tiny_target()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


DRAFTS = {
    "model": lambda target, other: ModelDraft(other),
    "first layer": lambda target, other: ModelDraft(first_layers(target, 1)),
    "lookup": lambda target, other: PromptLookup,
}


def sample(target, draft, samples, sampling=SAMPLING, decoder=None):
    """How often each triple of tokens came, and the statistics."""
    decoder = decoder or SpeculativeDecoder(target, WINDOW, draft, max_tokens=32, batch=500)
    options = dict(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    generations = decoder.generate_batch([PROMPT] * samples, FIRST + COUNT, **options)
    tokens = torch.tensor([generation.tokens[FIRST:] for generation in generations])
    cells = (tokens * VOCAB ** torch.arange(COUNT - 1, -1, -1)).sum(-1)
    return torch.bincount(cells, minlength=VOCAB**COUNT), decoder.stats


@pytest.mark.parametrize(
    "draft, samples",
    [
        ("model", 40_000),
        ("first layer", 10_000),
        ("lookup", 10_000),
        pytest.param("model", 200_000, marks=pytest.mark.slow),
        pytest.param("first layer", 200_000, marks=pytest.mark.slow),
        pytest.param("lookup", 200_000, marks=pytest.mark.slow),
    ],
)
def test_three_tokens_have_the_exact_law(target, other, law, draft, samples):
    counts, stats = sample(target, DRAFTS[draft](target, other), samples)
    p = p_value(counts, law)
    accepted = stats.accepted_drafts / stats.drafted
    print(f"{draft}: {samples} samples, {accepted:.0%} of the drafts accepted, p = {p:.3g}")
    assert p > ALPHA and 0.05 < accepted < 0.95


def redrawn(logits, row, uniforms, temperature):
    """A token of the law of the given row of each window."""
    count = len(logits)
    rows, ones = logits[torch.arange(count), row.long()].unsqueeze(1), torch.ones(count, dtype=torch.int32)
    none = torch.empty(count, 0, dtype=torch.int64)
    return speculative_accept(rows, none, ones, None, uniforms[:, -1:].contiguous(), temperature)[1]


def no_residual(logits, drafts, ntokens, draft_probs=None, uniforms=None, temperature=1.0):
    accepted, token = speculative_accept(logits, drafts, ntokens, draft_probs, uniforms, temperature)
    from_p = redrawn(logits, accepted - 1, uniforms, temperature)
    return accepted, torch.where(accepted < ntokens, from_p, token)


def bonus_from_the_row_before(logits, drafts, ntokens, draft_probs=None, uniforms=None, temperature=1.0):
    accepted, token = speculative_accept(logits, drafts, ntokens, draft_probs, uniforms, temperature)
    before = redrawn(logits, (accepted - 2).clamp(min=0), uniforms, temperature)
    return accepted, torch.where((accepted == ntokens) & (ntokens > 1), before, token)


class StaleCommit(Cursor):
    """A rejected token's row stays: beyond the accepted ones, or in place of the last of them."""

    in_place = False

    def commit(self, slots, accepted, path=None):
        ntokens = self.table[slots.long(), 3]
        rejected = accepted < ntokens
        if not self.in_place:
            return super().commit(slots, accepted + rejected, path)
        first = 4 + self.session.width - 1 + self.table[:, 1][slots.long()] + accepted - 1
        for slot, column in zip(slots[rejected].tolist(), first[rejected].tolist(), strict=True):
            self.table[slot, [column, column + 1]] = self.table[slot, [column + 1, column]]
        return super().commit(slots, accepted, path)


class StaleCommitInPlace(StaleCommit):
    in_place = True


def law_reported_without_top_p(self, logits, rows, i, sampling, uniforms):
    law = Sampling(sampling.temperature, sampling.top_k).probabilities(logits.clone())
    self.probabilities[rows, i] = law
    return draw(sampling.probabilities(sampling.mask_(logits)), uniforms[rows, i])


def drawn_without_top_p(self, logits, rows, i, sampling, uniforms):
    law = Sampling(sampling.temperature, sampling.top_k).probabilities(logits)
    self.probabilities[rows, i] = law
    return draw(law, uniforms[rows, i])


def take_back_too_little(self, slots):
    """One rejected draft stays in the draft's own cache."""
    for slot in slots:
        self.surplus[slot] = max(0, self.surplus[slot] - 1)
    TAKE_BACK(self, slots)


TAKE_BACK = model_draft.ModelDrafter._take_back


def seed(fault, patch, decoder, sampling):
    """Breaks the decoder in one way; returns the sampling to ask it for."""
    if fault == "no residual":
        patch.setattr(decode, "speculative_accept", no_residual)
    elif fault == "bonus token of the row before":
        patch.setattr(decode, "speculative_accept", bonus_from_the_row_before)
    elif fault == "top-p on the draft alone":
        propose = decoder.drafter.propose
        patch.setattr(decoder.drafter, "propose", lambda slots, most, _, u: propose(slots, most, sampling, u))
        return Sampling(sampling.temperature, sampling.top_k)
    elif fault == "a draft drawn with top-p, its law without":
        patch.setattr(model_draft.ModelDrafter, "_choose", law_reported_without_top_p)
    elif fault == "a stale row after the accepted ones":
        decoder.cache.cursor.__class__ = StaleCommit
    elif fault == "a stale row for the last accepted one":
        decoder.cache.cursor.__class__ = StaleCommitInPlace
    elif fault == "a draft without top-p, and its law":
        patch.setattr(model_draft.ModelDrafter, "_choose", drawn_without_top_p)
    elif fault == "a stale row in the draft's cache":
        patch.setattr(model_draft.ModelDrafter, "_take_back", take_back_too_little)
    else:
        raise AssertionError(fault)
    return sampling


@pytest.mark.parametrize("samples", SIZES)
@pytest.mark.parametrize(
    "fault, caught",
    [
        ("no residual", True),
        ("bonus token of the row before", True),
        ("top-p on the draft alone", True),
        ("a draft drawn with top-p, its law without", True),
        ("a stale row after the accepted ones", True),
        ("a stale row for the last accepted one", True),
        # Any draft with its own law will do: a worse one is only accepted less often.
        ("a draft without top-p, and its law", False),
        ("a stale row in the draft's cache", False),
    ],
)
def test_the_test_sees_faults_of_the_output_and_only_those(target, other, law, fault, caught, samples, monkeypatch):
    decoder = SpeculativeDecoder(target, WINDOW, ModelDraft(other), max_tokens=32, batch=500)
    sampling = seed(fault, monkeypatch, decoder, SAMPLING)
    p = p_value(sample(target, None, samples, sampling, decoder)[0], law)
    print(f"{fault}: {samples} samples, p = {p:.3g}")
    assert p < CAUGHT if caught else p > ALPHA
