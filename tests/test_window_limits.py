"""Windows, prompts and rollbacks beyond a session's buffers: one sentence, nothing written, the same bits after."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused
from speculation import NARROW, VOCAB, tiny_model
from test_step import decode, int32, make_step

from llamba_kernels.cache import DecodeCache, Session
from llamba_kernels.models.step import StepModel
from llamba_kernels.speculative import SpeculativeDecoder

MAX_TOKENS = 24
SESSION = Session(max_window=4, fold_every=2, max_rollback=1)


@pytest.fixture(scope="module")
def model():
    return tiny_model(**NARROW)


@pytest.fixture
def sequence():
    """A prompt of 9, and 15 tokens that fill the cache to the last entry."""
    return torch.randint(VOCAB, (9,)), torch.randint(VOCAB, (15,))


def filled(model, prompt):
    step = StepModel(model, DecodeCache(model.config, MAX_TOKENS, SESSION))
    step.cache.prefill(model, 0, prompt)
    return step


def memory(step):
    return [step.cache.cursor.table, *(each for layer in step.cache.layers for each in vars(layer).values())]


def refused_without_trace(step, sentence, function, *arguments):
    before = [each.clone() for each in memory(step)]
    assert_refused(ValueError, sentence, function, *arguments)
    for each, old in zip(memory(step), before, strict=True):
        assert_bitwise(each, old)


@pytest.mark.cpu_only
def test_a_step_wider_than_the_session(model, sequence):
    prompt, tokens = sequence
    expected = decode(filled(model, prompt), 0, tokens, 3)
    step = filled(model, prompt)
    first = decode(step, 0, tokens[:6], 3)
    for ntokens in (5, 64, 2**31 - 1, 0, -1):
        sentence = f"cursor_begin: ntokens must be 1 to max_window = 4; got {ntokens} for slot 0"
        refused_without_trace(step, sentence, step.cache.cursor.begin, int32(0), int32(ntokens))
    assert_bitwise(torch.cat([first, decode(step, 0, tokens[6:], 3)]), expected)


@pytest.mark.cpu_only
def test_fewer_tokens_than_the_open_step(model, sequence):
    """The step stays open, and goes on once all of its tokens are there; columns beyond it mean nothing."""
    prompt, tokens = sequence
    expected = decode(filled(model, prompt), 0, tokens[:3], 3)
    for columns in (3, 4):
        step = filled(model, prompt)
        step.cache.cursor.begin(int32(0), int32(3))
        sentence = "step: slot 0 must have an open step of 1 to 2 tokens; got 3"
        refused_without_trace(step, sentence, step, int32(0), tokens[None, :2])
        assert_bitwise(step(int32(0), tokens[None, :columns])[0, :3], expected)


@pytest.mark.cpu_only
def test_more_columns_or_sequences_than_the_session_has(model, sequence):
    prompt, tokens = sequence
    step = filled(model, prompt)
    step.cache.cursor.begin(int32(0), int32(4))
    rule = "step: tokens must be (1, 1) to (nslots, max_window) = (1, 4); got "
    refused_without_trace(step, rule + "(1, 5)", step, int32(0), tokens[None, :5])
    refused_without_trace(step, rule + "(2, 3)", step, int32(0, -1), tokens[:6].view(2, 3))
    refused_without_trace(step, rule + "(0, 3)", step, int32(), tokens[:0].view(0, 3))
    assert_bitwise(step(int32(0), tokens[None, :4])[0], decode(filled(model, prompt), 0, tokens[:4], 4))


@pytest.mark.cpu_only
def test_a_step_beyond_the_kv_cache(model, sequence):
    """Up to the last entry is fine; one token more is refused, and so is the slot until it is reset."""
    prompt, tokens = sequence
    step = filled(model, prompt)
    expected = decode(step, 0, tokens, 3)
    for ntokens, sentence in [
        (1, "step: slot 0 must stay within max_tokens = 24; got 24 + 1 tokens"),
        (4, "step: slot 0 must stay within max_tokens = 24; got 22 + 4 tokens"),
    ]:
        step.cache.cursor.reset(int32(0))
        step.cache.prefill(model, 0, prompt)
        decode(step, 0, tokens[: 15 if ntokens == 1 else 13], 3)
        step.cache.cursor.begin(int32(0), int32(ntokens))
        refused_without_trace(step, sentence, step, int32(0), torch.zeros(1, ntokens, dtype=torch.int64))
        with pytest.raises(ValueError, match="^cursor_begin: slot 0 must have no open step "):
            step.cache.cursor.begin(int32(0), int32(1))
    step.cache.cursor.reset(int32(0))
    step.cache.prefill(model, 0, prompt)
    assert_bitwise(decode(step, 0, tokens, 3), expected)


@pytest.mark.cpu_only
def test_a_prompt_beyond_the_kv_cache_leaves_the_sequence_there(model, sequence):
    prompt, tokens = sequence
    expected = decode(filled(model, prompt), 0, tokens, 3)
    step = filled(model, prompt)
    for length in (25, 1000, 0):
        sentence = f"prefill: prompt must have 1 to max_tokens = 24 tokens; got {length}"
        arguments = model, 0, torch.zeros(length, dtype=torch.int64)
        refused_without_trace(step, sentence, step.cache.prefill, *arguments)
    assert_bitwise(decode(step, 0, tokens, 3), expected)
    full = filled(model, torch.cat([prompt, tokens]))  # 24 tokens do fit
    assert full.cache.cursor.position(0) == MAX_TOKENS


@pytest.mark.cpu_only
def test_a_rollback_beyond_the_session(model, sequence):
    prompt, tokens = sequence
    step = filled(model, prompt)
    expected = decode(step, 0, tokens, 3)
    step.cache.prefill(model, 0, prompt)
    decode(step, 0, tokens[:6], 3)
    live = int(step.cache.cursor.table[0, 1])
    for n in (2, 16, -1):
        sentence = f"cursor_rollback: n must be 0 to min(max_rollback, live rows) = min(1, {live}); got {n} for slot 0"
        refused_without_trace(step, sentence, step.cache.cursor.rollback, int32(0), int32(n))
    step.cache.cursor.rollback(int32(0), int32(1))
    assert_bitwise(decode(step, 0, tokens[5:], 3), expected[5:])


@pytest.mark.parametrize("window", [1, 8, 64])
def test_a_decoder_whose_window_is_wider_than_its_cache(model, window):
    """Windows end where the sequence does; what does not fit is refused before anything is decoded."""
    prompt = [3, 1, 4, 1]
    plain = SpeculativeDecoder(model, window=1, max_tokens=100).generate(prompt, 4, eos_token_id=-1).tokens
    decoder = SpeculativeDecoder(model, window=window, max_tokens=8)
    assert decoder.generate(prompt, 4, eos_token_id=-1).tokens == plain
    sentence = "generate: prompt + max_new_tokens must be at most max_tokens = 8; got 4 + 5"
    assert_refused(ValueError, sentence, decoder.generate, prompt, 5)
    sentence = "generate: prompt + max_new_tokens must be at most max_tokens = 8; got 8 + 1"
    assert_refused(ValueError, sentence, decoder.generate, prompt * 2, 1)
    assert decoder.generate(prompt, 4, eos_token_id=-1).tokens == plain


def test_other_slots_decode_on_beside_a_refused_step(model, sequence):
    prompt, tokens = sequence
    step = make_step(model, nslots=2)
    for slot in (0, 1):
        step.cache.prefill(model, slot, prompt)
    expected = decode(step, 0, tokens[:8], 2)
    step.cache.prefill(model, 0, prompt)
    step.cache.cursor.begin(int32(0, 1), int32(2, 3))
    assert_refused(
        ValueError,
        "step: slot 1 must have an open step of 1 to 2 tokens; got 3",
        step,
        int32(0, 1),
        tokens[:4].view(2, 2),
    )
    assert_bitwise(step(int32(0), tokens[None, :2])[0], expected[:2])
    step.cache.cursor.commit(int32(0), int32(2))
    assert_bitwise(decode(step, 0, tokens[2:8], 2), expected[2:])


@pytest.mark.cpu_only
def test_tokens_that_are_none(model, sequence):
    prompt, tokens = sequence
    step = filled(model, prompt)
    step.cache.cursor.begin(int32(0), int32(3))
    rule, last = "step: tokens must be (batch, window) int64 and slots (batch); got ", VOCAB - 1
    for wrong, got in [
        (tokens[:3], "(3,) int64 and (1,)"),
        (tokens[None, :3].float(), "(1, 3) float32 and (1,)"),
        (tokens[:6].view(2, 3), "(2, 3) int64 and (1,)"),
    ]:
        refused_without_trace(step, rule + got, step, int32(0), wrong)
    for wrong in ([1, 2, VOCAB], [-1, 5, 2]):
        sentence = f"step: tokens must be ids from 0 to vocab_size - 1 = {last}; got {min(wrong)} to {max(wrong)}"
        assert_refused(ValueError, sentence, step, int32(0), torch.tensor([wrong]))
        sentence = f"prefill: prompt must hold ids from 0 to vocab_size - 1 = {last}; got {min(wrong)} to {max(wrong)}"
        refused_without_trace(step, sentence, step.cache.prefill, model, 0, torch.tensor(wrong))
    sentence = "prefill: prompt must be (P,) int64; got (1, 3) int64"
    refused_without_trace(step, sentence, step.cache.prefill, model, 0, tokens[None, :3])
    assert_bitwise(step(int32(0), tokens[None, :3])[0], decode(filled(model, prompt), 0, tokens[:3], 3))
