"""MambaInLlama's and state-spaces' own formats against references written from the papers' tables, bf16 included.

No other code of theirs runs here: the bf16 yardstick is the reference with every kept tensor rounded to bf16.
"""

import pytest
import torch
from originals import FORMATS, write
from parity import STEPS, assert_bf16_parity, assert_fp32_parity

from llamba_kernels.models import load_model
from python_ref.mamba_in_llama import mamba_in_llama_ref
from python_ref.mamba_ssm import mamba_ssm_ref


def sequences():
    return [(torch.randint(97, (prompt + STEPS,)), prompt) for prompt in (2, 40)]


def reference(config, mamba_config, parameters, **rounding):
    if mamba_config is None:
        return lambda tokens, _: mamba_ssm_ref(tokens.tolist(), parameters, config, **rounding)
    rope = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    given = {**config, "rope_parameters": rope}
    return lambda tokens, _: mamba_in_llama_ref(tokens.tolist(), parameters, given, mamba_config, **rounding)


@pytest.mark.parametrize("name", FORMATS)
def test_fp32(name, tmp_path):
    expected = reference(*write(tmp_path, name))
    model = load_model(tmp_path)
    assert_fp32_parity(model, sequences(), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_bf16(name, tmp_path):
    given = write(tmp_path, name, torch.bfloat16)
    exact, yardstick = reference(*given), reference(*given, stored_dtype=torch.bfloat16)
    model = load_model(tmp_path, torch.bfloat16)
    assert_bf16_parity(model, sequences(), exact, yardstick)
