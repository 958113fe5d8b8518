"""transformers' own `generate` on a hybrid: calls that its cache refuses in one sentence, and goes on."""

import pytest
import torch
from helpers import assert_refused
from speculation import tiny_model
from transformers import DynamicCache

from llamba_kernels.models.generation import GenerationCache


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def ids(*rows):
    return torch.tensor(rows)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda cache: cache.crop(2), "crop: tokens_to_remove must be -1 to 0, what can be taken back; got 2"),
        (lambda cache: cache.crop(-2), "crop: tokens_to_remove must be -1 to 0, what can be taken back; got -2"),
        (
            lambda cache: cache.model(ids([1], [2]), past_key_values=cache),
            "forward: input_ids must be of the cache's 1 sequences; got 2",
        ),
        (
            lambda cache: cache.model(ids([3, 61]), past_key_values=cache),
            "forward: input_ids must be from 0 to vocab_size - 1 = 60; got 3 to 61",
        ),
        (
            lambda cache: cache.model(ids([]).long(), past_key_values=cache),
            "forward: input_ids must be (batch, n) int64, n at least 1; got (1, 0) int64",
        ),
        (
            lambda cache: cache.model(ids([0, 1]), attention_mask=ids([1, 1, 1, 1, 0, 1]), past_key_values=cache),
            "forward: attention_mask must be 1 on all tokens after the first forward's; got 0",
        ),
        (
            lambda cache: cache.model(ids([1]), past_key_values=cache, labels=ids([1])),
            "forward: with past_key_values there must be input_ids and neither labels nor output_hidden_states nor a "
            "tensor as logits_to_keep; got another call",
        ),
    ],
    ids=["positive", "too many", "batch", "no id", "no token", "padding", "labels"],
)
def test_refusals_change_nothing(model, call, sentence):
    cache = GenerationCache(model, 1, 32)
    model(ids([1, 2, 3]), past_key_values=cache)
    cache.crop(0)
    step = model(ids([4]), past_key_values=cache).logits
    cache.crop(-1)
    model(ids([4]), past_key_values=cache)
    assert_refused(ValueError, sentence, call, cache)
    cache.crop(-1)
    assert torch.equal(model(ids([4]), past_key_values=cache).logits, step)


def test_other_caches_and_paddings_are_refused(model):
    sentence = "forward: past_key_values must be a GenerationCache; got DynamicCache"
    assert_refused(TypeError, sentence, model, ids([1]), past_key_values=DynamicCache())
    sentence = "forward: attention_mask must be 0 on left padding and 1 on at least one token after it"
    with pytest.raises(ValueError, match=sentence):
        model.generate(ids([1, 2, 3]), attention_mask=ids([1, 0, 1]))
    cache = GenerationCache(model, 1, 8)
    assert_refused(ValueError, sentence, model, ids([1, 2, 3]), attention_mask=ids([1, 1, 0]), past_key_values=cache)
    sentence = "forward: logits_to_keep must be 1 for sequences with padding; got 3"
    assert_refused(ValueError, sentence, model, ids([1, 2, 3]), attention_mask=ids([0, 1, 1]), past_key_values=cache)
