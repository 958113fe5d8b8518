"""Several calls of one decoder: newer streams, threads, a draft that calls it; and what ends a sequence."""

from threading import Thread

import pytest
import torch
from helpers import assert_refused
from speculation import PROMPT

from llamba_kernels.speculative import PromptLookup, SpeculativeDecoder


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
