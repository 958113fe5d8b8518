"""argmax: against the reference and torch; ties, masks, strides, threads; what it refuses."""

import pytest
import torch
from helpers import Surrounded, assert_bitwise, assert_refused, sliced, threads

from llamba_kernels.ops import argmax, speculative_accept
from llamba_kernels.testing import make_argmax_inputs
from python_ref.argmax import argmax_ref

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BASE = dict(shape=(2, 3), vocab=100, dtype=torch.float32)
CASES = {
    "base": {},
    "bf16": dict(dtype=torch.bfloat16),
    "fp16": dict(dtype=torch.float16),
    "vocab 1": dict(vocab=1),
    "vocab 15": dict(vocab=15),
    "vocab 16": dict(vocab=16),
    "vocab 17": dict(vocab=17),
    "vocab 1023": dict(vocab=1023),
    "vocab 1025 bf16": dict(vocab=1025, dtype=torch.bfloat16),
    "smollm2-135m": dict(vocab=49152),
    "one row": dict(shape=()),
    "rows": dict(shape=(50,)),
    "no rows": dict(shape=(0, 3)),
}


def make_inputs(**change):
    return make_argmax_inputs(**(BASE | change))


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_equals_reference_and_torch(change):
    (logits,) = make_inputs(**change)
    out = argmax(logits)
    assert_bitwise(out, argmax_ref(logits))
    assert_bitwise(logits.gather(-1, out[..., None]), logits.gather(-1, logits.argmax(-1, keepdim=True)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [7, 1030, 5000])
def test_lowest_index_of_ties(vocab, dtype):
    """Also among +0 and -0, and with nearly everything masked; as speculative_accept decides it."""
    logits = torch.full((4, 1, vocab), -torch.inf, dtype=dtype)
    ties = [vocab // 2, vocab - 1]
    logits[0, 0, ties] = 3.0
    logits[1, 0, ties] = torch.tensor([-0.0, 0.0], dtype=dtype)
    logits[2, 0] = -5.0
    logits[3, 0, -1] = -6e4
    out = argmax(logits)
    assert out[:, 0].tolist() == [vocab // 2, vocab // 2, 0, vocab - 1]
    no_drafts, ones = torch.empty(4, 0, dtype=torch.int64), torch.ones(4, dtype=torch.int32)
    assert_bitwise(out[:, 0], speculative_accept(logits, no_drafts, ones)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [45, 3000])
def test_rows_threads_strides_and_bystanders(vocab, dtype):
    (logits,) = make_inputs(shape=(16, 4), vocab=vocab, dtype=dtype)
    expected = argmax_ref(logits)
    for count in range(1, 65):
        with threads(1 + count % 3):
            assert_bitwise(argmax(logits.view(64, vocab)[:count]), expected.view(64)[:count])
    out = Surrounded(torch.zeros_like(expected), fill=77)
    assert argmax(sliced(logits), out=out.inner) is out.inner
    assert_bitwise(out.inner, expected)
    out.assert_surroundings_untouched()
    transposed = torch.zeros(4, 16, dtype=torch.int64).t()
    assert_bitwise(argmax(logits, out=transposed), expected)


def with_value(index, value):
    logits = torch.zeros(2, 3, 50)
    logits[index] = value
    return logits


NO_NAN = "logits must have a finite maximum and no NaN in every row"
SHARED = torch.zeros(300)
REFUSED = {
    "dtype": (
        dict(logits=torch.zeros(2, 3, 50).double()),
        TypeError,
        "logits must be float32, bfloat16 or float16; got float64",
    ),
    "dim": (
        dict(logits=torch.zeros(1, 2, 3, 50)),
        ValueError,
        "logits must have 1 to 3 dimensions; got shape (1, 2, 3, 50)",
    ),
    "stride": (dict(logits=torch.zeros(2, 50, 3).mT), TypeError, "logits must have stride 1 in dimension -1; got 3"),
    "vocab 0": (dict(logits=torch.zeros(2, 3, 0)), ValueError, "vocab must be at least 1; got 0"),
    "nan": (dict(logits=with_value((1, 2, 20), torch.nan)), ValueError, f"{NO_NAN}; got nan in row 2 of sequence 1"),
    "nan in the rest": (
        dict(logits=with_value((0, 1, 49), torch.nan)),
        ValueError,
        f"{NO_NAN}; got nan in row 1 of sequence 0",
    ),
    "inf": (dict(logits=with_value((1, 0, 3), torch.inf)), ValueError, f"{NO_NAN}; got inf in row 0 of sequence 1"),
    "all masked": (
        dict(logits=with_value((0, 0), -torch.inf)),
        ValueError,
        f"{NO_NAN}; got -inf in row 0 of sequence 0",
    ),
    "out shape": (
        dict(out=torch.full((3, 2), 7)),
        ValueError,
        "out must have shape (batch, ntokens) = (2, 3); got (3, 2)",
    ),
    "out dtype": (dict(out=torch.zeros(2, 3, dtype=torch.int32)), TypeError, "out must be int64; got int32"),
    "out overlaps itself": (
        dict(out=torch.zeros(1, 1, dtype=torch.int64).expand(2, 3)),
        TypeError,
        "out must have strides with which no two elements share memory; got shape (2, 3) with strides (0, 0)",
    ),
    "out overlaps logits": (
        dict(logits=SHARED.view(2, 3, 50), out=SHARED.view(torch.int64)[:6].view(2, 3)),
        TypeError,
        "out must share no memory with logits; got one that does",
    ),
    "grad": (
        dict(logits=torch.zeros(2, 3, 50, requires_grad=True)),
        ValueError,
        "logits must not require grad, because the operator has no backward (call it under torch.no_grad() or "
        "torch.inference_mode()); got one that does",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    good = dict(logits=torch.zeros(2, 3, 50), out=torch.full((2, 3), 7))
    assert_refused(kind, f"argmax: {sentence}", argmax, **(good | change))
    assert_bitwise(good["out"], torch.full((2, 3), 7))


def test_opcheck():
    torch.library.opcheck(torch.ops.llamba.argmax.default, (*make_inputs(), torch.empty(2, 3, dtype=torch.int64)))


def test_compiles_without_graph_break():
    (logits,) = make_inputs()
    compiled = torch.compile(lambda logits: argmax(logits) + 1, fullgraph=True, backend="aot_eager")
    assert_bitwise(compiled(logits), argmax(logits) + 1)
