"""Logits of the whole model, by prefill, over cached steps and after rollbacks, against transformers and the reference.

fp32: within 1e-4 of the largest logit. bf16: the error against fp64 on the same bf16 weights is at most twice that of a
yardstick. For a Llama that is transformers' own bf16 model with its own KV cache. No other code runs the hybrid: there
the yardstick is the slow reference with every kept tensor rounded to bf16, as any bf16 model must, and nothing else.
"""

import copy

import pytest
import torch
from llamas import HYBRID, HYBRIDS, LLAMAS, SIZES, randomize
from parity import STEPS, assert_bf16_parity, assert_fp32_parity, exact_logits, theirs_by_step
from transformers import LlamaConfig, LlamaForCausalLM

from llamba_kernels.models import LlambaConfig, LlambaForCausalLM

# A gated norm divides by what may be next to nothing: with random weights and the usual eps a few tokens' rounding is
# then amplified a hundredfold, and whose largest error is larger is luck.
WELL_CONDITIONED = {"initializer_range": 0.15, "rms_norm_eps": 0.1}


def sequences():
    """Prompts shorter than the convolution, and around a multiple of fold_every."""
    return [(torch.randint(SIZES["vocab_size"], (prompt + STEPS,)), prompt) for prompt in (1, 2, 23, 24)]


def make_llama(change, dtype):
    """transformers' model and ours with the same weights."""
    theirs = randomize(LlamaForCausalLM(LlamaConfig(**{**SIZES, **change}))).to(dtype)
    ours = LlambaForCausalLM(LlambaConfig.from_llama(theirs.config)).eval().to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make_hybrid(change, dtype):
    return randomize(LlambaForCausalLM(LlambaConfig(**{**HYBRID, **WELL_CONDITIONED, **change}))).to(dtype)


@pytest.mark.parametrize("change", LLAMAS.values(), ids=LLAMAS.keys())
def test_a_llama_in_fp32(change):
    theirs, ours = make_llama(change, torch.float32)
    assert_fp32_parity(ours, sequences(), lambda tokens, prompt: theirs_by_step(theirs, tokens, prompt))


@pytest.mark.parametrize("change", HYBRIDS.values(), ids=HYBRIDS.keys())
def test_a_hybrid_in_fp32(change):
    model = make_hybrid(change, torch.float32)
    assert_fp32_parity(model, sequences(), lambda tokens, _: exact_logits(model, tokens))


@pytest.mark.parametrize("change", LLAMAS.values(), ids=LLAMAS.keys())
def test_a_llama_in_bf16(change):
    theirs, ours = make_llama(change, torch.bfloat16)
    exact = copy.deepcopy(theirs).double()
    assert_bf16_parity(
        ours,
        sequences(),
        lambda tokens, _: exact(tokens[None]).logits[0].detach(),
        lambda tokens, prompt: theirs_by_step(theirs, tokens, prompt),
    )


@pytest.mark.parametrize("change", HYBRIDS.values(), ids=HYBRIDS.keys())
def test_a_hybrid_in_bf16(change):
    model = make_hybrid(change, torch.bfloat16)
    assert_bf16_parity(
        model,
        sequences(),
        lambda tokens, _: exact_logits(model, tokens),
        lambda tokens, _: exact_logits(model, tokens, stored_dtype=torch.bfloat16),
    )
