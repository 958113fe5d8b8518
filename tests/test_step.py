"""The whole step of a small hybrid: failures, rollbacks, copies and saved states leave no trace in the bits."""

import random

import pytest
import torch
from helpers import assert_bitwise, assert_refused
from speculation import NARROW, VOCAB, tiny_model

from llamba_kernels.cache import DecodeCache, SavedSlot, Session
from llamba_kernels.models import step_layers
from llamba_kernels.models.step import StepModel

LAYERS = ["mamba2", "attention", "mamba2", "mamba2"]


@pytest.fixture(scope="module")
def model():
    return tiny_model(LAYERS, **NARROW)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def make_step(model, nslots=1, session=None, checkpoint_dtype=torch.float32):
    session = session or Session(max_window=4, fold_every=2)
    cache = DecodeCache(model.config, 256, session, nslots, model.dtype, checkpoint_dtype)
    for layer in cache.layers:  # nothing that was not written may be read
        for buffer in vars(layer).values():
            buffer.fill_(float("nan"))
    return StepModel(model, cache)


def decode(step, slot, tokens, window):
    """Logits of tokens fed in steps of `window`, all accepted."""
    logits = []
    for chunk in tokens.split(window):
        step.cache.cursor.begin(int32(slot), int32(len(chunk)))
        logits.append(step(int32(slot), chunk.unsqueeze(0))[0].clone())
        step.cache.cursor.commit(int32(slot), int32(len(chunk)))
    return torch.cat(logits)


@pytest.mark.cpu_only
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", range(len(LAYERS)))
def test_a_step_that_fails_after_any_layer(model, failing, error, monkeypatch):
    """Its slots are refused until they are reset; then, as others all along, they decode with a fresh cache's bits."""
    prompt, tokens = torch.randint(VOCAB, (2, 9)), torch.randint(VOCAB, (2, 12))
    step, fresh = make_step(model, 3), make_step(model, 3)
    for each in (step, fresh):
        for slot in (0, 1):
            each.cache.prefill(model, slot, prompt[slot])
    expected = [decode(fresh, slot, tokens[slot], 3) for slot in (0, 1)]
    decode(step, 0, tokens[0, :6], 3)  # slot 0 is some steps in, and folds in the step that fails

    calls, mlp = [], step_layers.mlp

    def failing_mlp(*arguments):
        calls.append(None)
        if len(calls) == failing + 1:
            raise error("the machine said no")
        return mlp(*arguments)

    monkeypatch.setattr(step_layers, "mlp", failing_mlp)
    cursor = step.cache.cursor
    cursor.begin(int32(0, 2), int32(3, 2))
    assert int(cursor.table[0, 2]) > 0
    with pytest.raises(error, match="the machine said no"):
        step(int32(0, 2), torch.randint(VOCAB, (2, 3)))
    monkeypatch.undo()
    for slot in (0, 2):
        with pytest.raises(ValueError, match=rf"^cursor_begin: slot {slot} must have no open step "):
            cursor.begin(int32(slot), int32(1))
    assert_bitwise(decode(step, 1, tokens[1], 3), expected[1])  # a slot outside that step
    cursor.reset(int32(0, 2))
    for slot in (0, 2):
        step.cache.prefill(model, slot, prompt[0])
        assert_bitwise(decode(step, slot, tokens[0], 3), expected[0])


DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]


@pytest.mark.parametrize("dtype, checkpoint_dtype", DTYPES, ids=str)
def test_logits_do_not_depend_on_windows_and_rejections(dtype, checkpoint_dtype):
    assert_walk_equals_single_steps(tiny_model(LAYERS, dtype, **NARROW), checkpoint_dtype)


def assert_walk_equals_single_steps(model, checkpoint_dtype, steps=150):
    """Random windows, acceptance, rollbacks against one token at a time, from one prefill: all logits bit for bit."""
    rng = random.Random(0)
    prompt, tokens = torch.randint(VOCAB, (7,)), torch.randint(VOCAB, (200,))
    session = Session(max_window=5, fold_every=3, max_rollback=4, width=model.config.mamba_d_conv)
    plain, walk = (make_step(model, session=session, checkpoint_dtype=checkpoint_dtype) for _ in range(2))
    for each in (plain, walk):
        each.cache.prefill(model, 0, prompt)
    expected = decode(plain, 0, tokens, 1)
    cursor, position = walk.cache.cursor, 0
    for _ in range(steps):
        window = rng.randint(1, 5)
        right = rng.randint(0, window)  # the first tokens are the sequence's, the others are wrong drafts
        step_tokens = tokens[position : position + window].clone()
        step_tokens[right:] = (step_tokens[right:] + 1) % VOCAB
        cursor.begin(int32(0), int32(window))
        logits = walk(int32(0), step_tokens.unsqueeze(0))[0]
        accepted = rng.randint(0, right)
        cursor.commit(int32(0), int32(accepted))
        assert_bitwise(logits[:right], expected[position : position + right])
        position += accepted
        n = rng.choice([0, 0, 0, rng.randint(0, min(4, int(cursor.table[0, 1])))])
        n = min(n, position)
        cursor.rollback(int32(0), int32(n))
        position -= n
    assert position > steps // 4


def test_copies_and_saved_states_decode_alike(model):
    assert_copies_and_saved_states_decode_alike(model)


def assert_copies_and_saved_states_decode_alike(model):
    prompt, tokens, other = torch.randint(VOCAB, (5,)), torch.randint(VOCAB, (23,)), torch.randint(VOCAB, (9,))
    width = model.config.mamba_d_conv
    step = make_step(model, 4, Session(max_window=4, fold_every=4, max_rollback=2, width=width))
    step.cache.prefill(model, 0, prompt)
    step.cache.prefill(model, 3, other)
    decode(step, 0, tokens[:7], 4)
    saved = step.materialize(0)
    step.cache.slot_copy(int32(0, 0), int32(1, 3))
    bystander = [buffer[2].clone() for layer in step.cache.layers for buffer in vars(layer).values()]
    expected = decode(step, 0, tokens[7:], 1)
    for slot in (1, 3):
        assert_bitwise(decode(step, slot, tokens[7:], 4), expected)
    elsewhere = make_step(model, 2, Session(max_window=3, width=width))
    elsewhere.cache.state_import(1, saved)
    assert_bitwise(decode(elsewhere, 1, tokens[7:], 3), expected)
    after = [buffer[2] for layer in step.cache.layers for buffer in vars(layer).values()]
    for old, new in zip(bystander, after, strict=True):
        assert_bitwise(new, old)


def with_layer(saved, index, first, second):
    """saved, but for one layer."""
    layers = list(saved.layers)
    layers[index] = first, second
    return SavedSlot(saved.position, layers)


def test_an_import_that_fails_in_a_layer_leaves_the_slot_fresh(model):
    """Of the layers before it the slot has another sequence's state; it must decode as if nothing had been there."""
    tokens, other = torch.randint(VOCAB, (12,)), torch.randint(VOCAB, (9,))
    expected = decode(make_step(model), 0, tokens, 3)
    step = make_step(model, 2)
    step.cache.prefill(model, 0, other)
    saved = step.materialize(0)
    (k, v), (state, tail) = saved.layers[1:3]
    failures = [
        (with_layer(saved, 2, state.double(), tail), TypeError, "state must be float32; got float64"),
        (
            with_layer(saved, 1, k.double(), v),
            ValueError,
            "saved k must be (2, 9, 16) of torch.float32; got (2, 9, 16) of torch.float64",
        ),
        (
            with_layer(saved, 1, k, v[:, 1:]),
            ValueError,
            "saved v must be (2, 9, 16) of torch.float32; got (2, 8, 16) of torch.float32",
        ),
    ]
    for broken, kind, sentence in failures:
        step.cache.prefill(model, 1, other)
        assert_refused(kind, f"state_import: {sentence}", step.cache.state_import, 1, broken)
        assert_bitwise(decode(step, 1, tokens, 3), expected)


@pytest.mark.cpu_only
def test_an_import_that_is_refused_at_once_changes_nothing(model):
    step = make_step(model, 2)
    step.cache.prefill(model, 1, torch.randint(VOCAB, (9,)))
    saved = step.materialize(1)
    before = [step.cache.cursor.table, *(each for layer in step.cache.layers for each in vars(layer).values())]
    copies = [each.clone() for each in before]
    refusals = [
        (1, SavedSlot(9, saved.layers[:3]), "saved must have the model's 4 layers; got 3"),
        (1, SavedSlot(257, saved.layers), "saved must have at most max_tokens = 256 tokens; got 257"),
        (-1, saved, "slot must be 0 to 1; got -1"),
        (2, saved, "slot must be 0 to 1; got 2"),
    ]
    for slot, broken, sentence in refusals:
        assert_refused(ValueError, f"state_import: {sentence}", step.cache.state_import, slot, broken)
    negative = SavedSlot(-1, saved.layers)
    sentence = "cursor_reset: prompt must be at least 0 tokens; got -1 for slot 1"
    assert_refused(ValueError, sentence, step.cache.state_import, 1, negative)
    assert_refused(ValueError, "materialize: slot must be 0 to 1; got 2", step.materialize, 2)
    for each, copy in zip(before, copies, strict=True):
        assert_bitwise(each, copy)
