"""As test_model_parity.py, for what only some families have: Mamba-1 layers, layers without a mixer or an MLP, ...

By prefill, over cached steps and after rollbacks, against the slow reference in fp64: fp32 within 1e-4 of the largest
logit, bf16 within twice the error of the reference with every kept tensor rounded to bf16.
"""

import pytest
import torch
from llamas import KINDS, KINDS_CHANGES, SIZES, randomize
from parity import STEPS, assert_bf16_parity, assert_fp32_parity, exact_logits

from llamba_kernels.models import LlambaConfig, LlambaForCausalLM

WELL_CONDITIONED = {"initializer_range": 0.1, "rms_norm_eps": 0.1}  # rounding is then not amplified a hundredfold


def make_model(change, dtype):
    return randomize(LlambaForCausalLM(LlambaConfig(**{**KINDS, **WELL_CONDITIONED, **change}))).to(dtype)


def sequences(prompts):
    return [(torch.randint(SIZES["vocab_size"], (prompt + STEPS,)), prompt) for prompt in prompts]


@pytest.mark.parametrize("change", KINDS_CHANGES.values(), ids=KINDS_CHANGES)
def test_in_fp32(change):
    model = make_model(change, torch.float32)
    assert_fp32_parity(model, sequences([2, 13]), lambda tokens, _: exact_logits(model, tokens))


@pytest.mark.parametrize("change", KINDS_CHANGES.values(), ids=KINDS_CHANGES)
def test_in_bf16(change):
    model = make_model(change, torch.bfloat16)
    assert_bf16_parity(
        model,
        sequences([2, 40]),
        lambda tokens, _: exact_logits(model, tokens),
        lambda tokens, _: exact_logits(model, tokens, stored_dtype=torch.bfloat16),
    )
