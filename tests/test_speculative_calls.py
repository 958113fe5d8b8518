"""Several calls of one decoder: newer streams, threads, a draft that calls it; and what ends a sequence."""

from threading import Thread

import pytest
import torch
from helpers import assert_refused
from speculation import PROMPT

from llamba_kernels import memory
from llamba_kernels.memory import tensor_bytes
from llamba_kernels.speculative import ModelDraft, PromptLookup, SpeculativeDecoder


def test_an_older_stream_is_refused_not_mixed(plain):
    model, expected = plain
    decoder = SpeculativeDecoder(model, window=3)
    older = decoder.stream(PROMPT, 20)
    next(older)
    newer = decoder.stream(PROMPT, 20)
    tokens = list(next(newer))
    with pytest.raises(ValueError, match="^stream: decoder must decode one call at a time; got a newer call"):
        next(older)
    assert tokens + [token for burst in newer for token in burst] == expected[:20]


def test_threads_that_share_a_decoder_get_their_tokens_or_a_refusal(plain):
    """Whichever call is the newest wins; what a call returns is never a mix."""
    model, expected = plain
    decoder, outcomes = SpeculativeDecoder(model, window=3), []

    def call():
        for _ in range(10):
            try:
                outcomes.append(decoder.generate(PROMPT, 60).tokens)
            except ValueError as error:
                outcomes.append(str(error))

    threads = [Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refusal = "stream: decoder must decode one call at a time; got a newer call (use a decoder for each)"
    assert len(outcomes) == 30 and expected in outcomes and refusal in outcomes
    assert all(outcome in (expected, refusal) for outcome in outcomes)


def test_a_draft_that_calls_its_decoder_ends_the_call(plain):
    model, expected = plain

    class Calling(PromptLookup):
        calls = True

        def propose(self, most):
            if self.calls:
                self.calls = False
                assert decoder.generate(PROMPT, 5).tokens == expected[:5]
            return super().propose(most)

    decoder = SpeculativeDecoder(model, window=3, draft=Calling())
    stream = decoder.stream(PROMPT, 20)
    assert next(stream) == expected[:1]
    with pytest.raises(ValueError, match="^stream: decoder must decode one call at a time; got a newer call"):
        next(stream)
    assert decoder.generate(PROMPT, 20).tokens == expected[:20]


@pytest.mark.parametrize(
    "eos, got", [("</s>", "str"), (["</s>"], "str"), (torch.tensor([3]), "Tensor"), (2.0, "float"), (True, "bool")]
)
def test_ends_of_sequence_that_are_no_ids(plain, eos, got):
    """They equal no token: decoding would never end."""
    sentence = f"generate: eos_token_id must be an int or several; got one of {got}"
    assert_refused(TypeError, sentence, SpeculativeDecoder(plain[0]).generate, PROMPT, eos_token_id=eos)


TYPES = [
    (dict(stop=5), "generate: stop must be a string or several, none of them empty; got 5"),
    (dict(stop=["a", ""]), "generate: stop must be a string or several, none of them empty; got ''"),
    (dict(beams=3, topk=1), "generate: options must be those that `stream` describes; got beams, topk"),
]


@pytest.mark.parametrize("options, sentence", TYPES, ids=[sentence for _, sentence in TYPES])
def test_options_of_wrong_types_and_names(plain, options, sentence):
    decoder = SpeculativeDecoder(plain[0])
    for call in (decoder.generate, lambda *args, **kwargs: next(decoder.stream(*args, **kwargs))):
        assert_refused(TypeError, sentence, call, PROMPT, **options)
    assert_refused(TypeError, sentence, decoder.generate_batch, [PROMPT], **options)


def test_what_is_no_tokenizer_and_no_prompts(plain):
    model = plain[0]
    for user in (SpeculativeDecoder, ModelDraft):
        sentence = f"{user.__name__}: tokenizer must be one, as load_tokenizer gives it; got str"
        assert_refused(TypeError, sentence, user, model, tokenizer="x")
    sentence = "generate_batch: prompts must be sequences of ids; got int"
    assert_refused(TypeError, sentence, SpeculativeDecoder(model).generate_batch, 5)


def test_a_batch_that_no_memory_holds_is_refused_before_any_is_asked_for(plain, monkeypatch):
    """By the bytes of a slot, which are those that a decoder of one has."""
    model = plain[0]
    decoder = SpeculativeDecoder(model)
    each = tensor_bytes([decoder.cache.layers, decoder.cache.cursor.table, decoder.step.workspace])
    assert 100_000 < each < 1_000_000
    monkeypatch.setattr("llamba_kernels.memory.available_bytes", lambda: 3 * each)
    SpeculativeDecoder(model, batch=3)
    zeros = torch.zeros

    def small(*shape, **options):
        assert zeros(*shape, device="meta").numel() < 1_000_000
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", small)
    sentence = (
        f"SpeculativeDecoder: batch must be at most what fits the {3 * each:,} bytes of memory that are available, at "
        f"{each:,} bytes for each sequence of up to max_tokens = 256; got 65536"
    )
    assert_refused(ValueError, sentence, SpeculativeDecoder, model, batch=65536)
    sentence = "ModelDraft: batch must be at most what fits the "
    with pytest.raises(ValueError, match=sentence):
        ModelDraft(model).open(65536, 4, 256)


def test_the_memory_available_is_the_machine_s_or_what_the_container_s_limit_leaves(monkeypatch, tmp_path):
    free = memory.available_bytes()
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert 0 < free <= int(1.1 * memory.available_bytes())  # no limit; other processes go on meanwhile
    for folder, limit, used, inactive in (
        (tmp_path, "memory.max", "memory.current", "inactive_file"),
        (tmp_path / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        folder.mkdir(exist_ok=True)
        (folder / "memory.stat").write_text(f"anon 1\n{inactive} 300\n")
        (folder / limit).write_text("10000\n")
        (folder / used).write_text("4000\n")
        assert memory.available_bytes() == 6300
        (folder / limit).write_text(f"{2**62}\n")
