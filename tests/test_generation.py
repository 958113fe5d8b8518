"""transformers' own `generate` on a hybrid: with a cache it says what recomputing the sequence says, in every mode."""

import copy

import pytest
import torch
from helpers import assert_refused
from speculation import PROMPT, tiny_model
from torch.nn.utils import prune

from llamba_kernels.cache import DecodeCache
from llamba_kernels.models.generation import GenerationCache
from llamba_kernels.models.step import StepModel
from llamba_kernels.speculative import SpeculativeDecoder

LENGTH = 40


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def ids(*rows):
    return torch.tensor(rows)


def generate(model, input_ids, **options):
    return model.generate(input_ids, **({"max_new_tokens": LENGTH, "do_sample": False} | options))


@pytest.fixture(scope="module")
def expected(model):
    """By recomputing the sequence for every token."""
    return generate(model, ids(PROMPT), use_cache=False)


def test_an_assistant_may_draft_the_padding_id(model, expected):
    """transformers takes such a token of a draft's for padding; to the assistant it is a token like others."""
    pad = int(expected[0, len(PROMPT) + 3])
    options = {
        "pad_token_id": pad,
        "eos_token_id": None,
        "attention_mask": torch.ones(1, len(PROMPT), dtype=torch.int64),
    }
    assert torch.equal(
        generate(model, ids(PROMPT), assistant_model=model, **options)[:, : len(PROMPT) + 9],
        generate(model, ids(PROMPT), **options)[:, : len(PROMPT) + 9],
    )


class Forwards:
    """Counts a model's forwards and their tokens."""

    def __init__(self, model, monkeypatch):
        self.tokens = []
        forward = GenerationCache.forward

        def counted(cache, input_ids, *args):
            if cache.model is model:
                self.tokens.append(input_ids.shape[1])
            return forward(cache, input_ids, *args)

        monkeypatch.setattr(GenerationCache, "forward", counted)


def test_greedy_feeds_one_token_a_forward(model, expected, monkeypatch):
    forwards = Forwards(model, monkeypatch)
    assert torch.equal(generate(model, ids(PROMPT)), expected)
    assert forwards.tokens == [len(PROMPT)] + [1] * (LENGTH - 1)
    assert expected[0, len(PROMPT) :].tolist() == SpeculativeDecoder(model, window=3).generate(PROMPT, LENGTH).tokens


@pytest.mark.parametrize("count", [1, 3, 10])
def test_prompt_lookup_is_lossless(model, expected, count, monkeypatch):
    forwards = Forwards(model, monkeypatch)
    assert torch.equal(generate(model, ids(PROMPT), prompt_lookup_num_tokens=count), expected)
    assert max(forwards.tokens[1:]) > 1, "nothing was drafted"


def test_many_drafts_at_once(model, expected, monkeypatch):
    """The first forward already needs wider steps; an assistant whose confidence does not end its drafts early."""
    assistant = tiny_model(["mamba2"], seed=5)
    assistant.generation_config.num_assistant_tokens = 20
    assistant.generation_config.assistant_confidence_threshold = 0.0
    forwards = Forwards(model, monkeypatch)
    assert torch.equal(generate(model, ids(PROMPT), assistant_model=assistant), expected)
    assert forwards.tokens[0] == len(PROMPT) + 20


@pytest.mark.parametrize("layers", [["attention"], ["mamba2", "attention"], ["mamba2"]], ids=str)
@pytest.mark.parametrize("schedule", ["constant", "heuristic"])
@pytest.mark.parametrize("count", [1, 4, 20])
def test_an_assistant_is_lossless(model, expected, layers, schedule, count):
    assistant = tiny_model(layers, seed=5)
    assistant.generation_config.num_assistant_tokens = count
    assistant.generation_config.num_assistant_tokens_schedule = schedule
    assert torch.equal(generate(model, ids(PROMPT), assistant_model=assistant), expected)


def test_an_assistant_that_is_always_right(model, expected, monkeypatch):
    """The model itself: every draft stays, and the number of drafts grows beyond the first rows."""
    model.generation_config.num_assistant_tokens = 4
    model.generation_config.num_assistant_tokens_schedule = "heuristic"
    model.generation_config.assistant_confidence_threshold = 0.0
    twin = tiny_model()
    forwards = Forwards(twin, monkeypatch)
    assert torch.equal(generate(twin, ids(PROMPT), assistant_model=model), expected)
    assert len(forwards.tokens) < LENGTH / 4 and max(forwards.tokens[1:]) > 8


def test_assisted_decoding_with_logits_processors(model, expected):
    """They write into the logits that a forward returned."""
    penalty = {"repetition_penalty": 1.3}
    penalised = generate(model, ids(PROMPT), use_cache=False, **penalty)
    assert not torch.equal(penalised, expected)
    one = {"do_sample": True, "top_k": 1, "temperature": 0.7}  # leaves a law of one token
    for options in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny_model(["mamba2"], seed=5)}):
        assert torch.equal(generate(model, ids(PROMPT), **penalty, **options), penalised)
        assert torch.equal(generate(model, ids(PROMPT), **one, **options), expected)


def test_an_assistant_s_cache_is_seldom_rebuilt(model, expected, monkeypatch):
    """Each of its calls asks for room for a few tokens more."""
    rebuilds, rebuild = [], GenerationCache._rebuild
    monkeypatch.setattr(GenerationCache, "_rebuild", lambda *args: rebuilds.append(args) or rebuild(*args))
    assistant = tiny_model(["mamba2"], seed=5)
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assert torch.equal(generate(model, ids(PROMPT), assistant_model=assistant), expected)
    assert len(rebuilds) <= 4


def test_left_padding_and_batches(model, expected):
    pad = 3
    rows = [[pad] * 4 + PROMPT, [1, 2, *PROMPT, 9, 8], [pad] * 13 + [7]]
    mask = torch.tensor([[0] * 4 + [1] * 10, [1] * 14, [0] * 13 + [1]])
    together = generate(model, ids(*rows), attention_mask=mask)[:, 14:]
    assert together[0].tolist() == expected[0, len(PROMPT) :].tolist()
    for row, count, got in zip(rows, (10, 14, 1), together, strict=True):
        assert torch.equal(generate(model, ids(row[-count:]))[0, count:], got)


def test_beams_are_those_of_recomputation(model, monkeypatch):
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 15}
    recomputed = generate(model, ids(PROMPT, PROMPT[::-1]), use_cache=False, **options)
    prefills, prefill = [], DecodeCache.prefill
    monkeypatch.setattr(DecodeCache, "prefill", lambda *args: prefills.append(args) or prefill(*args))
    assert torch.equal(generate(model, ids(PROMPT, PROMPT[::-1]), **options), recomputed)
    assert len(prefills) == 2, "every beam's prompt was computed by itself"
    assert len({tuple(row) for row in recomputed.tolist()}) == 6
    samples = generate(model, ids(PROMPT), do_sample=True, num_return_sequences=4)
    assert len({tuple(row) for row in samples.tolist()}) == 4


def test_sampling_draws_what_recomputation_draws(model):
    options = {"do_sample": True, "temperature": 0.9, "top_k": 20}
    outputs = []
    for use_cache in (False, True):
        torch.manual_seed(3)
        outputs.append(generate(model, ids(PROMPT, PROMPT), use_cache=use_cache, **options))
    assert torch.equal(*outputs)


def test_a_conversation_goes_on_from_its_cache(model, expected, monkeypatch):
    cache = GenerationCache(model, 1, 64)
    first = generate(model, ids(PROMPT), past_key_values=cache, max_new_tokens=9)
    more = torch.cat([first, ids([4, 4, 2, 9, 11, 40, 3, 3, 3, 1, 0])], dim=1)
    forwards = Forwards(model, monkeypatch)
    assert torch.equal(generate(model, more, past_key_values=cache), generate(model, more, use_cache=False))
    assert forwards.tokens[0] == 12 and cache.get_max_length() >= more.shape[1] + LENGTH - 1


def test_a_recorded_forward_takes_no_wider_steps_than_it_keeps_logits(model, monkeypatch):
    """Of a turn's many tokens only the drafts after them may be cropped."""
    tokens, cache = torch.randint(61, (1, 40)), GenerationCache(model, 1, 64)
    model(tokens[:, :9], past_key_values=cache, logits_to_keep=1)
    cache.activate_past_recording()
    monkeypatch.setattr(GenerationCache, "_rebuild", lambda *args: pytest.fail("other buffers"))
    logits = model(tokens, past_key_values=cache, logits_to_keep=4).logits
    with torch.inference_mode():
        expected = model(torch.cat([tokens[:, :9], tokens], dim=1)).logits[:, -4:]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    cache.crop(-3)
    assert cache.get_seq_length() == 46


def test_a_copied_cache_goes_on_by_itself(model):
    """transformers' recipe for a shared prefix; the copy has the open step, too."""
    cache = GenerationCache(model, 1, 32)
    model(ids(PROMPT), past_key_values=cache, logits_to_keep=1)
    model(ids([4, 5, 6]), past_key_values=cache)
    twin = copy.deepcopy(cache)
    assert twin.model is model
    after = []
    for each, others in ((cache, [1, 2]), (twin, [1, 2]), (twin, [9]), (cache, [9])):
        each.crop(-2)
        after.append(model(ids([*others, 7, 8]), past_key_values=each).logits)
    assert torch.equal(after[0], after[1]) and torch.equal(after[2], after[3])


@pytest.mark.cpu_only
def test_a_cache_is_refused_after_a_forward_that_failed(model, monkeypatch):
    """What its layers have folded cannot be taken back, and must not be taken for decoded."""
    cache = GenerationCache(model, 1, 32)
    model(ids(PROMPT), past_key_values=cache, logits_to_keep=1)
    model(ids([4]), past_key_values=cache)

    def fail(self, slots, tokens):
        raise MemoryError("simulated")

    monkeypatch.setattr(StepModel, "__call__", fail)
    with pytest.raises(MemoryError, match="simulated"):
        model(ids([5]), past_key_values=cache)
    monkeypatch.undo()
    sentence = "forward: past_key_values must be a new cache after a forward that failed; got the old one"
    for call in (
        lambda: model(ids([5]), past_key_values=cache),
        lambda: cache.crop(0),
        lambda: cache.reorder_cache(torch.tensor([0])),
        lambda: cache.reserve(999, 0),
    ):
        assert_refused(ValueError, sentence, call)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = tiny_model(dtype=dtype)
    plain = generate(model, ids(PROMPT))
    assert plain[0, len(PROMPT) :].tolist() == SpeculativeDecoder(model, window=1).generate(PROMPT, LENGTH).tokens
    assert torch.equal(generate(model, ids(PROMPT), prompt_lookup_num_tokens=3), plain)


def test_what_the_kernels_do_not_take_is_recomputed():
    model = tiny_model().double()
    assert not GenerationCache.supports(model)
    assert torch.equal(generate(model, ids(PROMPT)), generate(model, ids(PROMPT), use_cache=False))
    states = generate(tiny_model(), ids(PROMPT), output_hidden_states=True, return_dict_in_generate=True).hidden_states
    assert len(states) == LENGTH and states[-1][-1].shape == (1, len(PROMPT) + LENGTH - 1, 48)
    pruned = tiny_model()
    for layer in pruned.model.layers:
        prune.l1_unstructured(layer.mlp.up_proj, "weight", 0.5)
    assert torch.equal(generate(pruned, ids(PROMPT)), generate(pruned, ids(PROMPT), use_cache=False))


def test_logits_of_a_first_forward_and_crops(model):
    """All logits of a prompt, then steps, crops within and before the open step: as recomputed."""
    tokens = torch.randint(61, (1, 30))
    with torch.inference_mode():
        reference = model(tokens).logits
    cache = GenerationCache(model, 1, 64)
    cache.reserve(64, 6)

    def check(start, stop):
        logits = model(tokens[:, start:stop], past_key_values=cache).logits
        torch.testing.assert_close(logits, reference[:, start:stop], rtol=1e-4, atol=1e-4)

    check(0, 9)
    cache.crop(-3)
    check(6, 12)
    cache.crop(0)
    for i in range(12, 20):
        check(i, i + 1)
    cache.crop(-6)  # of single tokens: the last open, five committed
    assert cache.get_seq_length() == 14
    check(14, 30)
