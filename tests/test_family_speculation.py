"""Speculative decoding of every family is plain decoding, bit for bit: tokens and logits, fp32 and bf16."""

import pytest
import torch
from foreign import FOREIGN, make_foreign
from helpers import assert_bitwise
from originals import FORMATS, write

from llamba_kernels.models import load_model
from llamba_kernels.speculative import SpeculativeDecoder
from llamba_kernels.testing import ForcedDraft

PROMPT, COUNT = [5, 6, 7, 8, 5, 6, 7, 9, 5, 6], 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*FOREIGN, *FORMATS])
def test_speculative_is_plain(name, dtype, tmp_path):
    if name in FORMATS:
        write(tmp_path, name)
    else:
        make_foreign(name).save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype)
    options = {"max_new_tokens": COUNT, "return_logits": True, "eos_token_id": ()}
    expected = SpeculativeDecoder(model, window=1, fold_every=2).generate(PROMPT, **options)
    assert len(expected.logits.unique(dim=0)) > COUNT // 2, "nothing changes: the comparison would prove little"
    drafts = ForcedDraft([[*PROMPT, *expected.tokens]], [0, 3, 1, 2, 9], model.config.vocab_size)
    result = SpeculativeDecoder(model, window=4, draft=drafts, fold_every=2).generate(PROMPT, **options)
    assert result.tokens == expected.tokens and 0 < result.stats.accepted_drafts < result.stats.drafted
    assert_bitwise(result.logits, expected.logits)
