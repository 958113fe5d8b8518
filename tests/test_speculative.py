"""Speculative decoding: the same tokens as plain decoding, from a model whose cached steps equal its full forward."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused
from speculation import PROMPT, VOCAB, tiny_model

from llamba_kernels.models import step_layers
from llamba_kernels.speculative import PromptLookup, SpeculativeDecoder
from llamba_kernels.testing import ForcedDraft


def forced(output, right):
    """Of the recorded output of PROMPT, `right` drafts of every step are accepted."""
    return ForcedDraft([[*PROMPT, *output]], right, VOCAB)


def recomputed(model, prompt, count):
    """Greedy tokens, each from a full forward: neither cache nor step."""
    options = {"max_new_tokens": count, "do_sample": False, "use_cache": False}
    return model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()


def test_plain_decoding_equals_recomputing_the_sequence(plain):
    model, tokens = plain
    assert tokens == recomputed(model, PROMPT, 60)
    assert len(set(tokens)) > 5, "the model repeats itself: the comparison would prove little"


@pytest.mark.parametrize("fold_every", [1, 4])
@pytest.mark.parametrize("window", range(1, 9))
def test_greedy_equals_plain(plain, window, fold_every):
    model, expected = plain
    decoder = SpeculativeDecoder(model, window=window, fold_every=fold_every)
    assert decoder.generate(PROMPT, 60).tokens == expected


@pytest.mark.parametrize("right", [0, 1, 2, 7])
def test_forced_acceptance(plain, right):
    """Rejecting every draft, some, or none gives the same tokens, and the statistics count them."""
    model, expected = plain
    result = SpeculativeDecoder(model, window=5, draft=forced(expected, right)).generate(PROMPT, 60)
    assert result.tokens == expected
    per_step = min(right, 4) + 1
    assert result.stats.acceptance_length == pytest.approx(per_step, abs=0.25)
    assert result.stats.accepted_drafts == result.stats.tokens - 1 - result.stats.steps


@pytest.mark.parametrize("layers", [["attention"] * 3, ["mamba2"] * 3], ids=["attention only", "mamba2 only"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_equals_plain_for_other_stacks(layers, dtype):
    model = tiny_model(layers, dtype)
    expected = SpeculativeDecoder(model, window=1).generate(PROMPT, 40).tokens
    for draft in (PromptLookup(), forced(expected, 2)):
        assert SpeculativeDecoder(model, window=4, draft=draft).generate(PROMPT, 40).tokens == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden_act", ["silu", "gelu"])
def test_greedy_equals_plain_for_other_activations_and_dtypes(hidden_act, dtype):
    model = tiny_model(["attention", "mamba2", "attention"], dtype, hidden_act=hidden_act)
    expected = SpeculativeDecoder(model, window=1).generate(PROMPT, 40).tokens
    draft = forced(expected, 2)
    assert SpeculativeDecoder(model, window=4, draft=draft).generate(PROMPT, 40).tokens == expected


def test_logits_are_bit_identical_across_windows(plain):
    """Not only the argmax: the logits that decided a token have the same bits in any window, whatever was rejected."""
    model, _ = plain
    expected = SpeculativeDecoder(model, window=1, fold_every=2).generate(PROMPT, 60, return_logits=True)
    assert_bitwise(expected.logits.argmax(-1), torch.tensor(expected.tokens))
    for right in (ForcedDraft.REJECT_ALL, ForcedDraft.ACCEPT_ALL, [0, 0, 0, 9, 9, 9, 1, 2, 0, 3]):
        decoder = SpeculativeDecoder(model, window=5, draft=forced(expected.tokens, right), fold_every=2)
        result = decoder.generate(PROMPT, 60, return_logits=True)
        assert result.tokens == expected.tokens
        assert_bitwise(result.logits, expected.logits)


def test_a_call_may_ask_for_a_smaller_window(plain):
    """One decoder's buffers serve plain and speculative decoding, with the same bits."""
    model, expected = plain
    decoder = SpeculativeDecoder(model, window=5, draft=forced(expected, 9))
    results = {window: decoder.generate(PROMPT, 60, window=window, return_logits=True) for window in (1, 2, 5)}
    for window, result in results.items():
        assert result.tokens == expected and result.stats.steps == -(-59 // window)
        assert_bitwise(result.logits, results[1].logits)
    assert results[1].stats.drafted == 0


def test_one_token_prompt(plain):
    model, _ = plain
    assert SpeculativeDecoder(model, window=4).generate([7], 20).tokens == recomputed(model, [7], 20)


def test_stops_at_eos_and_at_max_new_tokens(plain):
    model, expected = plain
    eos = expected[17]
    end = expected.index(eos) + 1
    for window in (1, 6):
        decoder = SpeculativeDecoder(model, window=window, draft=forced(expected, 7))
        assert decoder.generate(PROMPT, 60, eos_token_id=eos).tokens == expected[:end]
        for count in (1, 2, 11):
            assert decoder.generate(PROMPT, count).tokens == expected[:count]


class Letters:
    """A tokenizer: two letters per id."""

    def decode(self, tokens):
        return "".join(chr(97 + token // 8) + chr(97 + token % 8) for token in tokens)


@pytest.mark.parametrize("window", [1, 6])
def test_stops_at_a_string_wherever_tokens_end(plain, window):
    """The output ends with the token that completes it, in the middle of a window or not."""
    model, expected = plain
    text = Letters().decode(expected)
    decoder = SpeculativeDecoder(model, window, forced(expected, 9), tokenizer=Letters())
    for stop in (text[21:24], text[30:34], text[0:2], text[5:6]):
        end = -(-(text.index(stop) + len(stop)) // 2)
        for strings in (stop, ["never", stop]):
            result = decoder.generate(PROMPT, 60, stop=strings)
            assert result.tokens == expected[:end] and result.ended == "stop"
    result = decoder.generate(PROMPT, 60, stop="never")
    assert result.tokens == expected and result.ended == "length"
    for stop in ("", 5):
        sentence = f"generate: stop must be a string or several, none of them empty; got {stop!r}"
        assert_refused(TypeError, sentence, decoder.generate, PROMPT, stop=[stop])
    sentence = "generate: stop must come with the decoder's tokenizer; got 'x' and no tokenizer"
    assert_refused(ValueError, sentence, SpeculativeDecoder(model).generate, PROMPT, stop="x")


def test_stream_yields_the_tokens_of_each_step(plain):
    model, expected = plain
    bursts = list(SpeculativeDecoder(model, window=5, draft=forced(expected, 7)).stream(PROMPT, 31))
    assert [len(burst) for burst in bursts] == [1, 5, 5, 5, 5, 5, 5]
    assert [token for burst in bursts for token in burst] == expected[:31]


def test_sampling_is_seeded_and_varies(plain):
    model, _ = plain
    decoder = SpeculativeDecoder(model, window=4)
    first = decoder.generate(PROMPT, 30, temperature=1.0, seed=1).tokens
    assert decoder.generate(PROMPT, 30, temperature=1.0, seed=1).tokens == first
    assert decoder.generate(PROMPT, 30, temperature=1.0, seed=2).tokens != first


@pytest.mark.cpu_only
@pytest.mark.parametrize("failing_call", [1, 9, 25])
def test_a_step_that_fails_between_layers_does_not_poison_the_next_generation(plain, failing_call, monkeypatch):
    model, expected = plain
    decoder = SpeculativeDecoder(model, window=3)
    linear, calls = step_layers.skinny_linear, []

    def failing(*args, **options):
        calls.append(None)
        if len(calls) == failing_call:
            raise MemoryError("simulated")
        return linear(*args, **options)

    monkeypatch.setattr(step_layers, "skinny_linear", failing)
    with pytest.raises(MemoryError):
        decoder.generate(PROMPT, 60)
    with pytest.raises(ValueError, match="^cursor_begin: slot 0 must have no open step"):
        one = torch.tensor([1], dtype=torch.int32)
        decoder.cache.cursor.begin(one - 1, one)
    monkeypatch.undo()
    assert decoder.generate(PROMPT, 60).tokens == expected


def test_a_changed_model_is_seen_by_the_next_generation():
    model = tiny_model()
    decoder = SpeculativeDecoder(model, window=2)
    decoder.generate(PROMPT, 20)
    with torch.no_grad():
        model.model.layers[1].mamba.A_log.add_(2.0)
        model.model.layers[1].mamba.D.mul_(-3.0)
    assert decoder.generate(PROMPT, 20).tokens == SpeculativeDecoder(model, window=1).generate(PROMPT, 20).tokens


REFUSALS = [
    (dict(prompt=[-1]), "generate: prompt must hold ids from 0 to vocab_size - 1 = 60; got -1"),
    (dict(prompt=torch.ones(1, 3).long()), "generate: prompt must be one sequence of ids, (n,); got shape (1, 3)"),
    (dict(prompt=[]), "generate: prompt must have at least one token; got none"),
    (dict(prompt=[61]), "generate: prompt must hold ids from 0 to vocab_size - 1 = 60; got 61"),
    (dict(max_new_tokens=0), "generate: max_new_tokens must be 1 to 256; got 0"),
    (dict(max_new_tokens=250), "generate: prompt + max_new_tokens must be at most max_tokens = 256; got 10 + 250"),
    (dict(temperature=-1.0), "Sampling: temperature must be a number from 0 (greedy) up; got -1.0"),
    (dict(prompt=iter([3, 61])), "generate: prompt must hold ids from 0 to vocab_size - 1 = 60; got 61"),
    (dict(window=3), "generate: window must be 1 to 2; got 3"),
    (dict(seed=-1), "generate: seed must be 0 to 4611686018427387904; got -1"),
    (dict(temperature=1.0, top_k=-2), "Sampling: top_k must be None or an int from 0 (all) up; got -2"),
]


@pytest.mark.parametrize("options, sentence", REFUSALS, ids=[sentence for _, sentence in REFUSALS])
def test_refusals(plain, options, sentence):
    """And nothing is lost: a stream that is under way goes on."""
    model, expected = plain
    decoder = SpeculativeDecoder(model, window=2)
    stream = decoder.stream(PROMPT, 8)
    tokens = [*next(stream), *next(stream)]
    assert_refused(ValueError, sentence, decoder.generate, **({"prompt": PROMPT, "max_new_tokens": 4} | options))
    assert tokens + [token for burst in stream for token in burst] == expected[:8]


class ConstantDraft:
    """Proposes the same whatever it is asked for."""

    def __init__(self, drafts):
        self.drafts = drafts

    def reset(self, context):
        pass

    def extend(self, tokens):
        pass

    def propose(self, most):
        return self.drafts


DRAFTS = "generate: drafts must be a list of at most 2 ints from 0 to vocab_size - 1 = 60; got "
WRONG_DRAFTS = [
    ([1, 2, 3], ValueError, "3"),
    ([5, 61], ValueError, "61 among them"),
    ([-1], ValueError, "-1 among them"),
    ([2**80], ValueError, f"{2**80} among them"),
    ([5, 6.0], TypeError, "one of float"),
    (["5"], TypeError, "one of str"),
    ([True], TypeError, "one of bool"),
    (list(torch.tensor([5])), TypeError, "one of Tensor"),
    (torch.tensor([5, 6]), TypeError, "Tensor"),
    (None, TypeError, "NoneType"),
]


@pytest.mark.parametrize("drafts, kind, got", WRONG_DRAFTS, ids=[got for *_, got in WRONG_DRAFTS])
def test_wrong_drafts_are_refused_before_the_step_opens(plain, drafts, kind, got):
    """The slot has no open step, its committed tokens are as they were, and the decoder goes on to decode."""
    model, expected = plain
    draft = ConstantDraft([])
    decoder = SpeculativeDecoder(model, window=3, draft=draft)
    stream = decoder.stream(PROMPT, 20)
    tokens = [*next(stream), *next(stream)]
    draft.drafts = drafts
    table = decoder.cache.cursor.table.clone()
    assert_refused(kind, DRAFTS + got, next, stream)
    assert tokens == expected[:2] and decoder.stats.tokens == 2 and decoder.stats.drafted == 0
    assert_bitwise(decoder.cache.cursor.table, table)
    slots, one = torch.tensor([0], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
    decoder.cache.cursor.begin(slots, one)  # no step is open
    assert int(decoder.step(slots, torch.tensor([expected[1:2]])).argmax()) == expected[2]
    draft.drafts = []
    assert decoder.generate(PROMPT, 20).tokens == expected[:20]


def test_drafts_beyond_max_new_tokens_are_refused(plain):
    """With two tokens to go one may be drafted, whatever the window."""
    model, expected = plain
    stream = SpeculativeDecoder(model, window=6, draft=ConstantDraft([1, 2])).stream(PROMPT, 3)
    next(stream)
    sentence = DRAFTS.replace("at most 2", "at most 1") + "2"
    assert_refused(ValueError, sentence, next, stream)


@pytest.mark.parametrize(
    "prompt, got",
    [
        ([1, 2.0], "hold ints; got one of float"),
        ([[1, 2]], "hold ints; got one of list"),
        (torch.ones(3), "hold ints; got one of float"),
        ("text", "be token ids, such as tokenizer(text)['input_ids']; got a str"),
        (7, "be one sequence of ids; got int"),
    ],
)
def test_prompts_that_are_no_ids(plain, prompt, got):
    assert_refused(TypeError, f"generate: prompt must {got}", SpeculativeDecoder(plain[0]).generate, prompt)


def test_max_new_tokens_is_an_int(plain):
    """Decoding ends when exactly none remain."""
    sentence = "generate: max_new_tokens must be an int; got float"
    assert_refused(TypeError, sentence, SpeculativeDecoder(plain[0]).generate, PROMPT, 4.5)


@pytest.mark.parametrize(
    "window, kind, rule",
    [(0, ValueError, "1 to 64; got 0"), (65, ValueError, "1 to 64; got 65"), ("4", TypeError, "an int; got str")],
)
def test_windows_that_are_refused(plain, window, kind, rule):
    assert_refused(kind, f"SpeculativeDecoder: window must be {rule}", SpeculativeDecoder, plain[0], window=window)


def test_what_is_no_model_is_refused():
    """Its folder's name, say."""
    sentence = "SpeculativeDecoder: model must be a LlambaForCausalLM, as load_model gives it; got str"
    assert_refused(TypeError, sentence, SpeculativeDecoder, "runs/quickstart/hybrid")
