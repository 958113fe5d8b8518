"""The decode cache: what a prefill hands over, and what it refuses."""

import pytest
import torch
from helpers import assert_refused
from speculation import NARROW, tiny_model

from llamba_kernels.cache import Cursor, DecodeCache, Session
from llamba_kernels.models.step import StepModel


@pytest.fixture(scope="module")
def model():
    return tiny_model(["mamba2", "attention"], **NARROW)


@pytest.mark.parametrize("fold_every, max_rollback", [(1, 0), (4, 0), (4, 3), (5, 9)])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13])
def test_prefill_hands_over_what_stepping_would_have_left(model, length, fold_every, max_rollback):
    assert_prefill_hands_over(model, length, fold_every, max_rollback)


def assert_prefill_hands_over(model, length, fold_every, max_rollback):
    """After a prefill, and after the same prompt fed in steps, the next token's logits agree to fp32 round-off."""
    session = Session(3, fold_every, max_rollback, model.config.mamba_d_conv)
    prompt, more = torch.randint(50, (length,)), torch.randint(50, (1, 3))
    slot, one, three = (torch.tensor([value], dtype=torch.int32) for value in (0, 1, 3))
    logits = []
    for prefill in (True, False):
        cache = DecodeCache(model.config, 32, session)
        for layer in cache.layers:  # nothing but what the prefill writes may be read
            for buffer in vars(layer).values():
                buffer.fill_(float("nan"))
        step = StepModel(model, cache)
        if prefill:
            logits.append(cache.prefill(model, 0, prompt))
        else:
            for token in prompt:
                cache.cursor.begin(slot, one)
                last = step(slot, token.view(1, 1))
                cache.cursor.commit(slot, one)
            logits.append(last[0, 0].clone())
        for _ in range(3):
            cache.cursor.begin(slot, three)
            logits.append(step(slot, more)[0].clone())
            cache.cursor.commit(slot, three)
    for one_way, other_way in zip(logits[:4], logits[4:], strict=True):
        torch.testing.assert_close(one_way, other_way, rtol=1e-4, atol=1e-5)


def test_slots_do_not_disturb_each_other(model):
    cache = DecodeCache(model.config, 32, Session(max_window=4), nslots=3)
    step, prompts = StepModel(model, cache), torch.randint(50, (2, 6))
    alone = []
    for slot in (0, 2):
        cache.prefill(model, slot, prompts[slot // 2])
        one_slot = torch.tensor([slot], dtype=torch.int32)
        cache.cursor.begin(one_slot, torch.tensor([4], dtype=torch.int32))
        alone.append(step(one_slot, prompts[slot // 2, None, :4]).clone())
        cache.cursor.commit(one_slot, torch.tensor([0], dtype=torch.int32))  # taken back entirely
    slots = torch.tensor([2, 0], dtype=torch.int32)
    cache.cursor.begin(slots, torch.tensor([4, 4], dtype=torch.int32))
    both = step(slots, prompts[[1, 0], :4])
    assert torch.equal(both[0], alone[1][0]) and torch.equal(both[1], alone[0][0])


def test_padding_is_never_touched(model):
    """A step with a slot of -1 leaves every other slot's buffers alone, and what is not padding gets its own logits."""
    cache = DecodeCache(model.config, 16, Session(max_window=3), nslots=3)
    step, prompt = StepModel(model, cache), torch.randint(50, (2, 5))
    for slot in (0, 2):
        cache.prefill(model, slot, prompt[slot // 2])
    before = [buffer[1:].clone() for layer in cache.layers for buffer in vars(layer).values()]
    slots, ntokens = torch.tensor([-1, 0, -1], dtype=torch.int32), torch.tensor([1, 3, 1], dtype=torch.int32)
    cache.cursor.begin(slots, ntokens)
    logits = step(slots, prompt[[1, 0, 1], :3]).clone()
    after = [buffer[1:] for layer in cache.layers for buffer in vars(layer).values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    cache.prefill(model, 0, prompt[0])
    cache.cursor.begin(slots[1:2], ntokens[1:2])
    assert torch.equal(step(slots[1:2], prompt[:1, :3])[0], logits[1])


def test_refusals(model):
    with pytest.raises(ValueError, match=r"^DecodeCache: session.width must be the model's mamba_d_conv = 4; got 3$"):
        DecodeCache(model.config, 8, Session(width=3))
    cache = DecodeCache(model.config, 8, Session(max_window=4))
    with pytest.raises(ValueError, match=r"^prefill: prompt must have 1 to max_tokens = 8 tokens; got 9$"):
        cache.prefill(model, 0, torch.zeros(9, dtype=torch.int64))
    cache.prefill(model, 0, torch.zeros(6, dtype=torch.int64))
    slot = torch.tensor([0], dtype=torch.int32)
    cache.cursor.begin(slot, torch.tensor([4], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"^step: slot 0 must stay within max_tokens = 8; got 6 \+ 4 tokens$"):
        StepModel(model, cache)(slot, torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^prefill: slot must be 0 to 0; got -1$"):
        cache.prefill(model, -1, torch.zeros(2, dtype=torch.int64))
    cache.cursor.reset(slot)
    with pytest.raises(ValueError, match=r"^step: slot 0 must have an open step of 1 to 4 tokens; got 0$"):
        StepModel(model, cache)(slot, torch.zeros(1, 4, dtype=torch.int64))


SESSION_REFUSED = [
    (dict(max_window=2**31), ValueError, "max_window must be 1 to 1048576; got 2147483648"),
    (dict(max_window=0), ValueError, "max_window must be 1 to 1048576; got 0"),
    (dict(max_window="4"), TypeError, "max_window must be an int; got str"),
    (dict(max_window=4.0), TypeError, "max_window must be an int; got float"),
    (dict(fold_every=0), ValueError, "fold_every must be 1 to 1048576; got 0"),
    (dict(fold_every=None), TypeError, "fold_every must be an int; got NoneType"),
    (dict(max_rollback=-1), ValueError, "max_rollback must be 0 to 1048576; got -1"),
    (dict(max_rollback=2**20 + 1), ValueError, "max_rollback must be 0 to 1048576; got 1048577"),
    (dict(width=1), ValueError, "width must be 2 to 4; got 1"),
    (dict(width=5), ValueError, "width must be 2 to 4; got 5"),
    (dict(width=torch.tensor(4)), TypeError, "width must be an int; got Tensor"),
]


@pytest.mark.parametrize("constants, kind, sentence", SESSION_REFUSED, ids=[each[-1] for each in SESSION_REFUSED])
def test_session_refusals(constants, kind, sentence):
    assert_refused(kind, f"Session: {sentence}", Session, **constants)


@pytest.fixture
def no_allocation(monkeypatch):
    """What is refused is refused before any buffer is made."""

    def zeros(*_, **__):
        raise AssertionError("allocated before the arguments were checked")

    monkeypatch.setattr(torch, "zeros", zeros)


CURSOR_REFUSED = [
    (0, Session(), ValueError, "nslots must be 1 to 2147483647; got 0"),
    (2**31, Session(), ValueError, "nslots must be 1 to 2147483647; got 2147483648"),
    ("2", Session(), TypeError, "nslots must be an int; got str"),
    (2, Session, TypeError, "session must be a Session; got type"),
    (2, None, TypeError, "session must be a Session; got NoneType"),
]


@pytest.mark.parametrize("nslots, session, kind, sentence", CURSOR_REFUSED, ids=[each[-1] for each in CURSOR_REFUSED])
def test_cursor_refusals(no_allocation, nslots, session, kind, sentence):
    assert_refused(kind, f"Cursor: {sentence}", Cursor, nslots, session)


CACHE_REFUSED = [
    (dict(max_tokens=0), ValueError, "max_tokens must be 1 to 2147483647; got 0"),
    (dict(max_tokens="8"), TypeError, "max_tokens must be an int; got str"),
    (dict(nslots=0), ValueError, "nslots must be 1 to 2147483647; got 0"),
    (dict(nslots="2"), TypeError, "nslots must be an int; got str"),
    (dict(dtype=torch.float64), TypeError, "dtype must be float32, bfloat16 or float16; got float64"),
    (
        dict(checkpoint_dtype=torch.float64),
        TypeError,
        "checkpoint_dtype must be float32, bfloat16 or float16; got float64",
    ),
    (dict(checkpoint_dtype=None), TypeError, "checkpoint_dtype must be float32, bfloat16 or float16; got None"),
]


@pytest.mark.parametrize("session", [None, Session()], ids=["chosen session", "given session"])
@pytest.mark.parametrize("change, kind, sentence", CACHE_REFUSED, ids=[each[-1] for each in CACHE_REFUSED])
def test_cache_refusals(model, no_allocation, change, kind, sentence, session):
    arguments = dict(config=model.config, max_tokens=8, session=session) | change
    assert_refused(kind, f"DecodeCache: {sentence}", DecodeCache, **arguments)
