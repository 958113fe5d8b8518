"""Decoding models of every kind of layer: the bits, the copies and the drafts of a step, and transformers' generate."""

import pytest
import torch
from speculation import NARROW, PROMPT, VOCAB, tiny_model
from test_cache import assert_prefill_hands_over
from test_capture import assert_a_step_allocates_nothing
from test_speculative import forced, recomputed
from test_step import assert_copies_and_saved_states_decode_alike, assert_walk_equals_single_steps

from llamba_kernels.speculative import ModelDraft, PromptLookup, SpeculativeDecoder, first_layers
from llamba_kernels.speculative.profile import profile_step

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
MAMBA1 = {"mamba1_d_inner": 48, "mamba1_dt_rank": 3}
STACKS = {
    "mamba": {"layers": ["mamba1"] * 3, "mlp_layers": [False] * 3, **MAMBA1},
    "falcon-mamba, dstate 32": {
        "layers": ["mamba1"] * 2,
        "mlp_layers": [False] * 2,
        "mamba1_inner_norm": "plain",
        "mamba1_d_state": 32,
        "mamba_d_conv": 3,
        **MAMBA1,
    },
    "jamba": {"layers": ["mamba1", "attention", "mamba1"], "mamba1_inner_norm": "weighted", "rotary_dim": 0, **MAMBA1},
    "mamba-in-llama": {"layers": ["attention", "mamba1", "mamba1"], "mamba1_selection": "input", "sliding_window": 6},
    "both kinds": {
        "layers": ["mamba2", "mamba1", "attention"],
        "rotary_dim": 8,
        "residual_multiplier": 0.7,
        "embedding_multiplier": 2.0,
        "logits_divisor": 0.5,
        **MAMBA1,
    },
    "nemotron": {
        "layers": ["mamba2", "none", "attention", "mamba1"],
        "mlp_layers": [False, True, False, False],
        "mlp_gated": False,
        "hidden_act": "relu2",
        "mamba_proj_bias": True,
        **MAMBA1,
    },
}


def stack(name, dtype=FP32, seed=0, **changes):
    return tiny_model(dtype=dtype, seed=seed, **{**NARROW, **STACKS[name], **changes})


DTYPES = [(FP32, FP32), (BF16, FP32), (FP32, BF16), (BF16, BF16), (FP16, FP16), (FP16, FP32)]
WALKS = [(name, *dtypes) for name, dtypes in zip(STACKS, DTYPES, strict=True)]
WALKS += [("mamba", BF16, BF16), ("mamba-in-llama", FP16, FP16)]


@pytest.mark.parametrize("name, dtype, checkpoint_dtype", WALKS, ids=str)
def test_logits_do_not_depend_on_windows_and_rejections(name, dtype, checkpoint_dtype):
    assert_walk_equals_single_steps(stack(name, dtype), checkpoint_dtype, steps=60)


@pytest.mark.parametrize("name", STACKS)
def test_copies_and_saved_states_decode_alike(name):
    assert_copies_and_saved_states_decode_alike(stack(name))


@pytest.mark.parametrize("name", STACKS)
def test_prefill_hands_over_what_stepping_would_have_left(name):
    for length, fold_every, max_rollback in ((1, 4, 0), (3, 1, 0), (8, 4, 3), (13, 5, 2)):
        assert_prefill_hands_over(stack(name), length, fold_every, max_rollback)


@pytest.mark.parametrize("name", [name for name in STACKS if name not in ("both kinds", "nemotron")])
def test_a_step_allocates_nothing(name):
    """But where torch itself computes: its activations, and a number that it multiplies by."""
    assert_a_step_allocates_nothing(stack(name))


@pytest.mark.parametrize("name", STACKS)
def test_greedy_equals_plain_and_recomputing(name):
    """Whatever drafts: lookup, recorded drafts, the model's own first layers, itself, a small model."""
    model, count = stack(name), 40
    expected = SpeculativeDecoder(model, window=1).generate(PROMPT, count).tokens
    assert expected == recomputed(model, PROMPT, count) and len(set(expected)) > 5
    drafts = [PromptLookup(), forced(expected, 2), ModelDraft(first_layers(model, 1)), ModelDraft(model)]
    for draft in (*drafts, ModelDraft(stack("mamba", seed=5))):
        result = SpeculativeDecoder(model, window=4, draft=draft).generate(PROMPT, count)
        assert result.tokens == expected
    assert result.stats.steps < count  # the last draft was right now and then


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("name", STACKS)
def test_greedy_equals_plain_in_16_bits(name, dtype):
    model = stack(name, dtype)
    expected = SpeculativeDecoder(model, window=1).generate(PROMPT, 40).tokens
    for right in (0, 2, 7):
        assert (
            SpeculativeDecoder(model, window=5, draft=forced(expected, right)).generate(PROMPT, 40).tokens == expected
        )


@pytest.mark.parametrize("name", STACKS)
def test_transformers_generate(name):
    """Greedy, by prompt lookup, with an assistant of another kind, in a padded batch, and with beams."""
    model, ids = stack(name), torch.tensor([PROMPT])
    options = {"max_new_tokens": 20, "do_sample": False}
    expected = model.generate(ids, **options, use_cache=False)
    assert torch.equal(model.generate(ids, **options), expected)
    assert torch.equal(model.generate(ids, **options, prompt_lookup_num_tokens=3), expected)
    assistant = stack("falcon-mamba, dstate 32", seed=5)
    assistant.generation_config.num_assistant_tokens = 5
    assert torch.equal(model.generate(ids, **options, assistant_model=assistant), expected)
    padded, mask = torch.tensor([[3] * 4 + PROMPT, [1, 2, *PROMPT, 9, 8]]), torch.ones(2, 14, dtype=torch.long)
    mask[0, :4] = 0
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:1, 14:], expected[:, len(PROMPT) :])
    beams = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 8}
    assert torch.equal(model.generate(ids, **beams), model.generate(ids, **beams, use_cache=False))


def test_the_profile_names_what_runs():
    decoder = SpeculativeDecoder(stack("mamba"), window=3)
    spent = profile_step(decoder, PROMPT, 16)
    assert spent["mamba1_verify"] > 0 and spent["conv1d_verify"] > 0 and spent["attention"] == 0


def test_a_window_that_a_sequence_outgrows():
    """Beyond the sliding window the model forgets: with one of 6 tokens and one attention layer, what is 7 back."""
    model = tiny_model(["attention"], sliding_window=6, **NARROW)
    prompts = [torch.randint(VOCAB, (1, 20)) for _ in range(2)]
    prompts[1][:, -6:] = prompts[0][:, -6:]
    prompts[1][:, :-6] = (prompts[0][:, :-6] + 1) % VOCAB
    rotated = [model(ids).logits[0, -1] for ids in prompts]
    torch.testing.assert_close(rotated[0], rotated[1])
    texts = [SpeculativeDecoder(model, window=4).generate(ids[0].tolist(), 20).tokens for ids in prompts]
    assert texts[0] == texts[1]
