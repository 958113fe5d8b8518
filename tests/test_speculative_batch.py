"""Several sequences at once: each has the tokens, logits and statistics that it has alone."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused
from speculation import LAYERS, VOCAB, tiny_model

from llamba_kernels.cache import DecodeCache
from llamba_kernels.speculative import ModelDraft, NoDraft, PromptLookup, SpeculativeDecoder, first_layers
from llamba_kernels.testing import ForcedDraft

LENGTHS = [1, 3, 17, 6, 30, 2, 9, 9]
TOKENS = 25


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def drafts_for(model, prompts, outputs):
    sequences = [[*prompt, *output] for prompt, output in zip(prompts, outputs, strict=True)]
    schedule = [0, 0, 0, 9, 9, 1, 2, 0, 3]
    return {
        "none": NoDraft,
        "lookup": PromptLookup,
        "forced": lambda: ForcedDraft(sequences, schedule, VOCAB),
        "first layers": ModelDraft(first_layers(model, 2)),
        "small mamba2": ModelDraft(tiny_model(["mamba2"], model.dtype, seed=5)),
        "itself": ModelDraft(model),
    }


def counts(stats):
    return stats.prompt_tokens, stats.tokens, stats.steps, stats.drafted, stats.accepted_drafts


@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.9, top_k=40, top_p=0.95, seed=3)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layers", [LAYERS, ["attention"] * 2, ["mamba2"] * 2], ids=["hybrid", "attention", "mamba2"])
def test_a_sequence_is_in_a_batch_what_it_is_alone(prompts, layers, dtype, options):
    """Eight prompts through three slots, so that slots change hands while others are in the middle."""
    model = tiny_model(layers, dtype)
    alone = SpeculativeDecoder(model, window=1, fold_every=2)
    outputs = [alone.generate(prompt, TOKENS).tokens for prompt in prompts]
    for draft in drafts_for(model, prompts, outputs).values():
        one, several = (SpeculativeDecoder(model, 4, draft, fold_every=2, batch=batch) for batch in (1, 3))
        together = several.generate_batch(prompts, TOKENS, return_logits=True, **options)
        assert len(together) == len(prompts)
        for i, (prompt, generation) in enumerate(zip(prompts, together, strict=True)):
            seed = {"seed": options["seed"] + i} if options else {}
            expected = one.generate(prompt, TOKENS, return_logits=True, **(options | seed))
            assert generation.tokens == expected.tokens
            assert options or generation.tokens == outputs[i]
            assert_bitwise(generation.logits, expected.logits)
            assert counts(generation.stats) == counts(expected.stats)


def test_equal_prompts_are_prefilled_once_and_sampled_apart(prompts, monkeypatch):
    """Several samples of one prompt, each as it is with its own seed alone."""
    model, prompt, options = tiny_model(), prompts[2], dict(temperature=1.0, top_p=0.9)
    prefills, prefill = [], DecodeCache.prefill
    monkeypatch.setattr(DecodeCache, "prefill", lambda *args: prefills.append(args) or prefill(*args))
    for draft in (PromptLookup, ModelDraft(tiny_model(["mamba2"], seed=5))):
        one, several = (SpeculativeDecoder(model, 3, draft, batch=batch) for batch in (1, 4))
        expected = [one.generate(prompt, TOKENS, seed=seed, **options).tokens for seed in range(6)]
        prefills.clear()
        together = several.generate_batch([prompt] * 4, TOKENS, **options)
        assert [generation.tokens for generation in together] == expected[:4]
        assert len(prefills) == (1 if draft is PromptLookup else 2)  # the target's and the draft's
        assert [each.tokens for each in several.generate_batch([prompt] * 6, TOKENS, **options)] == expected
        assert len({tuple(tokens) for tokens in expected}) == 6


def test_sequences_end_by_themselves(prompts):
    """At an end-of-sequence token, wherever in a window it falls; the others go on."""
    model = tiny_model()
    outputs = [each.tokens for each in SpeculativeDecoder(model, 1, batch=8).generate_batch(prompts, TOKENS)]
    eos = outputs[0][7]
    decoder = SpeculativeDecoder(model, 4, drafts_for(model, prompts, outputs)["forced"], batch=3)
    together = decoder.generate_batch(prompts, TOKENS, eos_token_id=[eos, outputs[1][0]])
    ended = set()
    for generation, output in zip(together, outputs, strict=True):
        ends = [i for i, token in enumerate(output) if token in (eos, outputs[1][0])]
        assert generation.tokens == (output[: ends[0] + 1] if ends else output)
        assert generation.ended == ("eos" if ends else "length")
        ended.add(generation.ended)
    assert ended == {"eos", "length"} and together[1].tokens == outputs[1][:1]


def test_statistics_add_up(prompts):
    decoder = SpeculativeDecoder(tiny_model(), 4, PromptLookup, batch=3)
    together, total = decoder.generate_batch(prompts, TOKENS), decoder.stats
    assert total.sequences == len(prompts) and total.tokens == len(prompts) * TOKENS
    each = torch.tensor([counts(generation.stats) for generation in together])
    assert each.sum(0).tolist() == list(counts(total))
    assert 1 <= total.acceptance_length <= 4 and total.tokens_per_second > 0
    for generation in together:
        assert all(0 < seconds <= total.seconds[part] for part, seconds in generation.stats.seconds.items())
        assert generation.stats.tokens_per_second <= total.tokens_per_second


def test_a_batch_is_refused_as_a_whole_before_it_starts(prompts):
    decoder = SpeculativeDecoder(tiny_model(), 3, PromptLookup, batch=2)
    expected, stats = decoder.generate_batch(prompts[:2], TOKENS), decoder.stats
    table = decoder.cache.cursor.table.clone()
    wrong = "generate: prompt must hold ids from 0 to vocab_size - 1 = 60; got 61"
    assert_refused(ValueError, wrong, decoder.generate_batch, [*prompts, [61]], TOKENS)
    flat = "generate: prompt must be one sequence of ids; got int"
    assert_refused(TypeError, flat, decoder.generate_batch, prompts[0], TOKENS)
    assert_bitwise(decoder.cache.cursor.table, table)
    assert decoder.stats is stats and decoder.generate_batch([], TOKENS) == []
    assert [each.tokens for each in decoder.generate_batch(prompts[:2], TOKENS)] == [each.tokens for each in expected]
    for batch, rule in ((0, "1 to 65536; got 0"), (2**20, f"1 to 65536; got {2**20}")):
        sentence = f"SpeculativeDecoder: batch must be {rule}"
        assert_refused(ValueError, sentence, SpeculativeDecoder, tiny_model(), draft=PromptLookup, batch=batch)


@pytest.mark.cpu_only
def test_a_draft_that_fails_in_one_sequence_leaves_no_trace(prompts):
    """The call ends with its error; no step is open, and the next call has all slots."""

    class Failing(PromptLookup):
        fails = False

        def propose(self, most):
            if Failing.fails and len(self.tokens) > 40:
                raise RuntimeError("simulated")
            return super().propose(most)

    decoder = SpeculativeDecoder(tiny_model(), 3, Failing, batch=3)
    expected = [each.tokens for each in decoder.generate_batch(prompts, TOKENS)]
    Failing.fails = True
    with pytest.raises(RuntimeError, match="simulated"):
        decoder.generate_batch(prompts, TOKENS)
    assert decoder.cache.cursor.table[:, 3].tolist() == [0, 0, 0], "a step is open"
    Failing.fails = False
    assert [each.tokens for each in decoder.generate_batch(prompts, TOKENS)] == expected
