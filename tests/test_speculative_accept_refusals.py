"""speculative_accept refuses by one sentence, and writes nothing then."""

import pytest
import torch
from helpers import assert_refused

from llamba_kernels.ops import speculative_accept


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


NAN = float("nan")
GOOD = dict(
    logits=torch.zeros(2, 3, 5),
    drafts=torch.ones(2, 2, dtype=torch.int64),
    ntokens=torch.tensor([3, 3], dtype=torch.int32),
    draft_probs=torch.full((2, 2, 5), 0.2),
    uniforms=torch.full((2, 3), 0.5, dtype=torch.float64),
    temperature=1.0,
)
NO_NAN = "logits must have a finite maximum and no NaN in every row"
SHARED = torch.zeros(3, dtype=torch.int64)
REFUSED = {
    "logits dtype": (
        dict(logits=torch.zeros(2, 3, 5).double()),
        TypeError,
        "logits must be float32, bfloat16 or float16; got float64",
    ),
    "logits dim": (dict(logits=torch.zeros(2, 5)), ValueError, "logits must have 3 dimensions; got shape (2, 5)"),
    "logits stride": (
        dict(logits=torch.zeros(2, 5, 3).mT),
        TypeError,
        "logits must have stride 1 in dimension -1; got 3",
    ),
    "logits nan": (
        dict(logits=changed(GOOD["logits"], (1, 2, 4), NAN)),
        ValueError,
        f"{NO_NAN}; got nan in row 2 of sequence 1",
    ),
    "logits inf": (
        dict(logits=changed(GOOD["logits"], (0, 1, 0), torch.inf)),
        ValueError,
        f"{NO_NAN}; got inf in row 1 of sequence 0",
    ),
    "logits all masked": (
        dict(logits=changed(GOOD["logits"], (1, 0), -torch.inf)),
        ValueError,
        f"{NO_NAN}; got -inf in row 0 of sequence 1",
    ),
    "no vocab": (
        dict(logits=torch.zeros(2, 3, 0), draft_probs=None),
        ValueError,
        "vocab must be 1 to 2147483647; got 0",
    ),
    "no window": (dict(logits=torch.zeros(2, 0, 5)), ValueError, "max_window must be 1 to 2147483647; got 0"),
    "drafts shape": (
        dict(drafts=torch.ones(2, 3, dtype=torch.int64)),
        ValueError,
        "drafts must have shape (batch, max_window - 1) = (2, 2); got (2, 3)",
    ),
    "drafts dtype": (dict(drafts=torch.ones(2, 2, dtype=torch.int32)), TypeError, "drafts must be int64; got int32"),
    "drafts stride": (
        dict(drafts=torch.ones(2, 2, dtype=torch.int64).t()),
        TypeError,
        "drafts must have stride 1 in dimension -1; got 2",
    ),
    "drafts too large": (
        dict(drafts=changed(GOOD["drafts"], (1, 0), 5)),
        ValueError,
        "drafts must be below vocab = 5 and not negative; got 5 as draft 0 of sequence 1",
    ),
    "drafts negative": (
        dict(drafts=changed(GOOD["drafts"], (0, 1), -1)),
        ValueError,
        "drafts must be below vocab = 5 and not negative; got -1 as draft 1 of sequence 0",
    ),
    "ntokens shape": (
        dict(ntokens=torch.ones(3, dtype=torch.int32)),
        ValueError,
        "ntokens must have shape (batch) = (2,); got (3,)",
    ),
    "ntokens dtype": (dict(ntokens=torch.ones(2, dtype=torch.int64)), TypeError, "ntokens must be int32; got int64"),
    "ntokens stride": (
        dict(ntokens=torch.ones(4, dtype=torch.int32)[::2]),
        TypeError,
        "ntokens must have stride 1 in dimension -1; got 2",
    ),
    "ntokens 0": (
        dict(ntokens=torch.tensor([3, 0], dtype=torch.int32)),
        ValueError,
        "ntokens must be 1 to max_window = 3; got 0 for sequence 1",
    ),
    "ntokens 4": (
        dict(ntokens=torch.tensor([4, 3], dtype=torch.int32)),
        ValueError,
        "ntokens must be 1 to max_window = 3; got 4 for sequence 0",
    ),
    "draft_probs shape": (
        dict(draft_probs=torch.zeros(2, 2, 4)),
        ValueError,
        "draft_probs must have shape (batch, max_window - 1, vocab) = (2, 2, 5); got (2, 2, 4)",
    ),
    "draft_probs dtype": (
        dict(draft_probs=torch.zeros(2, 2, 5).double()),
        TypeError,
        "draft_probs must be float32; got float64",
    ),
    "draft_probs stride": (
        dict(draft_probs=torch.zeros(2, 5, 2).mT),
        TypeError,
        "draft_probs must have stride 1 in dimension -1; got 2",
    ),
    "draft_probs nan": (
        dict(draft_probs=changed(GOOD["draft_probs"], (1, 1, 1), NAN)),
        ValueError,
        "draft_probs must be 0 to 1; got nan for draft 1 of sequence 1",
    ),
    "draft_probs greedy": (
        dict(uniforms=None),
        ValueError,
        "draft_probs must be None when uniforms is None (greedy); got a tensor",
    ),
    "uniforms shape": (
        dict(uniforms=torch.zeros(2, 2).double()),
        ValueError,
        "uniforms must have shape (batch, max_window) = (2, 3); got (2, 2)",
    ),
    "uniforms dtype": (dict(uniforms=torch.zeros(2, 3).half()), TypeError, "uniforms must be float64; got float16"),
    "uniforms stride": (
        dict(uniforms=torch.zeros(3, 2).double().t()),
        TypeError,
        "uniforms must have stride 1 in dimension -1; got 2",
    ),
    "uniforms 1": (
        dict(uniforms=changed(GOOD["uniforms"], (1, 2), 1.0)),
        ValueError,
        "uniforms must be at least 0 and below 1; got 1 in column 2 of sequence 1",
    ),
    "uniforms nan": (
        dict(uniforms=changed(GOOD["uniforms"], (0, 0), NAN)),
        ValueError,
        "uniforms must be at least 0 and below 1; got nan in column 0 of sequence 0",
    ),
    "temperature 0": (dict(temperature=0.0), ValueError, "temperature must be positive and finite; got 0"),
    "temperature -1": (dict(temperature=-1.0), ValueError, "temperature must be positive and finite; got -1"),
    "temperature nan": (dict(temperature=NAN), ValueError, "temperature must be positive and finite; got nan"),
    "accepted dtype": (
        dict(out=(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))),
        TypeError,
        "accepted must be int32; got int64",
    ),
    "accepted shape": (
        dict(out=(torch.zeros(1, dtype=torch.int32), torch.zeros(2, dtype=torch.int64))),
        ValueError,
        "accepted must have shape (batch) = (2,); got (1,)",
    ),
    "next_token dtype": (
        dict(out=(torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))),
        TypeError,
        "next_token must be int64; got int32",
    ),
    "next_token shape": (
        dict(out=(torch.zeros(2, dtype=torch.int32), torch.zeros(3, dtype=torch.int64))),
        ValueError,
        "next_token must have shape (batch) = (2,); got (3,)",
    ),
    "accepted is ntokens": (
        dict(out=(GOOD["ntokens"], torch.zeros(2, dtype=torch.int64))),
        TypeError,
        "accepted must share no memory with ntokens; got one that does",
    ),
    "next_token in drafts": (
        dict(out=(torch.zeros(2, dtype=torch.int32), GOOD["drafts"][1])),
        TypeError,
        "next_token must share no memory with drafts; got one that does",
    ),
    "next_token overlaps accepted": (
        dict(out=(SHARED[1:].view(torch.int32)[:2], SHARED[:2])),
        TypeError,
        "next_token must share no memory with accepted; got one that does",
    ),
    "accepted stride": (
        dict(out=(torch.zeros(4, dtype=torch.int32)[::2], torch.zeros(2, dtype=torch.int64))),
        TypeError,
        "accepted must have stride 1 in dimension -1; got 2",
    ),
    "next_token stride": (
        dict(out=(torch.zeros(2, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)[::2])),
        TypeError,
        "next_token must have stride 1 in dimension -1; got 2",
    ),
}


@pytest.mark.parametrize("change, kind, sentence", REFUSED.values(), ids=REFUSED)
def test_refusals(change, kind, sentence):
    out = torch.full((2,), 77, dtype=torch.int32), torch.full((2,), 77, dtype=torch.int64)
    assert_refused(kind, f"speculative_accept: {sentence}", speculative_accept, **(GOOD | dict(out=out) | change))
    assert out[0].tolist() == out[1].tolist() == [77, 77]


def test_logits_without_dimensions_are_refused():
    """Also where the wrapper allocates out."""
    sentence = "speculative_accept: logits must have 3 dimensions; got shape ()"
    assert_refused(ValueError, sentence, speculative_accept, **(GOOD | dict(logits=torch.tensor(3.0))))
