"""attention_step with a sliding window: against the fp64 reference, bit for bit, and deaf to what lies before it."""

import pytest
from helpers import assert_bitwise, assert_close_to_ref
from test_attention_step import DTYPES, call, copied, make_inputs, one_by_one

from llamba_kernels.ops import attention_step
from llamba_kernels.testing import attention_step_formula
from python_ref.attention_step import attention_step_ref

POSITIONS = [0, 3, 15, 16, 255, 256, 300, 700]
WINDOWS = [1, 2, 3, 16, 17, 100, 256, 257, 600]


def windowed(inputs, window):
    return attention_step(**copied(inputs), sliding_window=window)


@pytest.mark.parametrize("tree", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("window", WINDOWS)
def test_values_against_fp64_reference(window, tree):
    dtype = DTYPES[window % 3]
    inputs = make_inputs(positions=POSITIONS, ntokens=[5, 1, 7, 2, 3, 4, 6, 5], head_dim=40, dtype=dtype, tree=tree)
    out = windowed(inputs, window)
    expected = attention_step_ref(**inputs, sliding_window=window)[0]
    assert_close_to_ref(out, expected, attention_step_formula(**copied(inputs), sliding_window=window))
    far = call(inputs)[0] != out  # a window that reaches the first token changes nothing, a shorter one does
    for b, position in enumerate(POSITIONS):
        assert bool(far[b, 0].any()) == (window <= position)


@pytest.mark.parametrize("window", [1, 3, 17, 260])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_path_of_a_tree_equals_its_tokens_one_by_one(dtype, window, monkeypatch):
    """Whoever shares a block of keys with a token: its bits are those of the token alone. A chain is such a path."""
    ntokens, count = 9, len(POSITIONS)
    inputs = make_inputs(positions=POSITIONS, ntokens=[ntokens] * count, head_dim=36, dtype=dtype, tree=True)
    monkeypatch.setattr("test_attention_step.attention_step", lambda **step: windowed_in_place(step, window))
    out = windowed(inputs, window)
    chain = windowed(inputs | {"parents": None}, window)
    for b in range(count):
        parents = inputs["parents"][b].tolist()
        path = [ntokens - 1]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        assert_bitwise(one_by_one(inputs, b, path), out[b, path])
        assert_bitwise(one_by_one(inputs, b, range(ntokens)), chain[b])


def windowed_in_place(step, window):
    return attention_step(**step, sliding_window=window)


@pytest.mark.parametrize("window", [1, 5, 100, 270])
def test_what_lies_before_the_window_is_not_read(window):
    inputs = make_inputs(positions=POSITIONS, ntokens=[3] * len(POSITIONS))
    out = windowed(inputs, window)
    for b, position in enumerate(POSITIONS):
        gone = max(0, position - window + 1)  # what the step's first token, and with it every later one, does not see
        for cache in ("k_cache", "v_cache"):
            inputs[cache][inputs["slots"][b], :, :gone] = float("nan")
    assert_bitwise(windowed(inputs, window), out)
