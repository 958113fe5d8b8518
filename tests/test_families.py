"""Every checkpoint family loads as transformers saved it and gives its logits: prompts, cached steps, after rollbacks.

fp32: within 1e-4 of the largest logit. bf16: the error against fp64 on the same bf16 weights is at most twice that of
transformers' own bf16 model with its own cache.
"""

import copy

import pytest
import torch
from foreign import FOREIGN, make_foreign, without_warnings
from parity import STEPS, assert_bf16_parity, assert_fp32_parity, theirs_by_step

from llamba_kernels.models import load_model
from llamba_kernels.models.families import FAMILIES, foreign_shapes, names


def sequences():
    """Prompts shorter than the convolution, and around a multiple of fold_every."""
    return [(torch.randint(97, (prompt + STEPS,)), prompt) for prompt in (2, 23)]


def saved(family, folder, dtype=torch.float32):
    theirs = make_foreign(family, dtype)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("family", FOREIGN)
def test_fp32(family, tmp_path):
    with without_warnings():
        theirs = saved(family, tmp_path)
        model = load_model(tmp_path)
        assert_fp32_parity(model, sequences(), lambda *given: theirs_by_step(theirs, *given))


@pytest.mark.parametrize("family", FOREIGN)
def test_bf16(family, tmp_path):
    with without_warnings():
        theirs = saved(family, tmp_path, torch.bfloat16)
        exact, model = copy.deepcopy(theirs).double(), load_model(tmp_path, torch.bfloat16)
        assert_bf16_parity(
            model,
            sequences(),
            lambda tokens, _: exact(tokens[None]).logits[0].detach(),
            lambda *given: theirs_by_step(theirs, *given),
        )


@pytest.mark.parametrize("family", FOREIGN)
def test_names_and_shapes_are_theirs(family, tmp_path):
    theirs = saved(family, tmp_path)
    config = load_model(tmp_path).config
    assert config.origin["family"] in FAMILIES
    expected = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
    if config.origin["family"] == "nemotron_h":  # saved as NVIDIA names it
        expected = {name.replace("model.", "backbone.", 1): shape for name, shape in expected.items()}
    assert foreign_shapes(config) == expected
    ours = [name for rule in names(config) for name in rule.ours]
    assert len(ours) == len(set(ours))


@pytest.mark.parametrize("family, change", [("llama", {"sliding_window": 3}), ("jamba", {"head_dim": 16})])
def test_a_setting_that_transformers_reads_or_not(family, change, tmp_path):
    """A Llama's attention sees all tokens, whatever its config.json says; Jamba's heads may be of any size."""
    theirs = make_foreign(family, **change)
    theirs.save_pretrained(tmp_path)
    tokens = torch.randint(97, (1, 20))
    with torch.no_grad():
        expected, logits = theirs(tokens, use_cache=False).logits, load_model(tmp_path)(tokens).logits
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
