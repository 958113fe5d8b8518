"""Long proof on the real models: greedy speculative output is plain greedy output, tokens and logits, bit for bit.

Teacher and hybrid, fp32 and bf16 weights, every draft, windows 1 to 8 in rotation. `pytest -m slow`; needs the folders
of a quickstart run (LLAMBA_RUN, default runs/quickstart) and 4 GB of memory.
"""

import os
from pathlib import Path

import pytest
import torch
from helpers import assert_bitwise

from llamba_kernels import SpeculativeDecoder, load_model, load_tokenizer
from llamba_kernels.decode_bench import held_out_prompts
from llamba_kernels.speculative import ModelDraft, PromptLookup, first_layers
from llamba_kernels.testing import ForcedDraft

pytestmark = pytest.mark.slow
RUN = Path(os.environ.get("LLAMBA_RUN", "runs/quickstart"))
PROMPTS, PROMPT_TOKENS, NEW_TOKENS, BATCH = 40, 64, 128, 8
DTYPES = [torch.float32, torch.bfloat16]
REJECT, ACCEPT = ForcedDraft.REJECT_ALL, ForcedDraft.ACCEPT_ALL
FORCED = {
    "all rejected": REJECT,
    "all accepted": ACCEPT,
    "stretches": [REJECT] * 6 + [ACCEPT] * 6 + [1, 2, 3],
}


def windows(group):
    """Two for each group of prompts; over four groups each of 1 to 8 comes once."""
    return 1 + group % 8, 1 + (group + 4) % 8


def drafts_of(model, other, plain, prompts):
    sequences = [prompt + result.tokens for prompt, result in zip(prompts, plain, strict=True)]
    forced = {
        name: lambda right=right: ForcedDraft(sequences, right, model.config.vocab_size)
        for name, right in FORCED.items()
    }
    return {
        "prompt lookup": PromptLookup,
        # Right now and then; the hybrid's have Mamba-2 layers among them, rolled back by cursor.
        "own first 11 layers": ModelDraft(first_layers(model, 11)),
        "another model": ModelDraft(other),
        **forced,
    }


@pytest.fixture(scope="module", params=DTYPES, ids=["float32", "bfloat16"])
def models(request):
    return {name: load_model(RUN / name, request.param) for name in ("teacher", "hybrid")}


@pytest.mark.parametrize("name", ["teacher", "hybrid"])
def test_greedy_speculation_gives_the_bits_of_plain_decoding(models, name):
    model, other = models[name], models["hybrid" if name == "teacher" else "teacher"]
    prompts = held_out_prompts(load_tokenizer(RUN / name), None, PROMPTS, PROMPT_TOKENS)
    assert len({tuple(prompt) for prompt in prompts}) == PROMPTS
    options = {"eos_token_id": -1, "return_logits": True}
    decoder = SpeculativeDecoder(model, window=1, max_tokens=PROMPT_TOKENS + NEW_TOKENS)
    plain = [decoder.generate(prompt, NEW_TOKENS, **options) for prompt in prompts]
    assert all(result.logits.shape == (NEW_TOKENS, model.config.vocab_size) for result in plain)

    steps = {}
    for draft, made in drafts_of(model, other, plain, prompts).items():
        steps[draft] = drafted = accepted = 0
        for group, first in enumerate(range(0, PROMPTS, BATCH)):
            for window in windows(group):
                decoder = SpeculativeDecoder(model, window, made, PROMPT_TOKENS + NEW_TOKENS, batch=BATCH)
                results = decoder.generate_batch(prompts[first : first + BATCH], NEW_TOKENS, **options)
                for i, result in enumerate(results, first):
                    where = f"{name}, {draft}, window {window}, prompt {i}"
                    assert result.tokens == plain[i].tokens, where
                    assert_bitwise(result.logits, plain[i].logits)
                    steps[draft] += result.stats.steps
                    drafted += result.stats.drafted
                    accepted += result.stats.accepted_drafts
        print(f"{name} {model.dtype} {draft}: {steps[draft]} steps, {accepted} of {drafted} drafts stayed, same bits")
        if draft != "all accepted":
            assert drafted - accepted > 1000, "hardly a draft was rejected: the comparison would prove little"
    assert steps["all accepted"] < steps["stretches"] < steps["all rejected"]
