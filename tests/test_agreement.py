"""Agreement with the teacher's greedy text, against counting by hand."""

import pytest
import torch
from tiny import VOCAB, write_teacher

from llamba_kernels import SpeculativeDecoder
from llamba_kernels.agreement import common_prefix, same_next_token
from llamba_kernels.models import load_model


def test_common_prefix_is_the_mean_length_before_the_first_difference():
    assert common_prefix([[1, 2, 3], [4, 5, 6]], [[1, 2, 9], [4, 5, 6]]) == 2.5
    assert common_prefix([[1, 2, 3]], [[9, 2, 3]]) == 0  # what agrees after a difference does not count
    with pytest.raises(ValueError):
        common_prefix([[1, 2, 3]], [[1, 2]])


def test_same_next_token_counts_the_tokens_that_are_the_models_choice(tmp_path):
    model = load_model(write_teacher(tmp_path / "teacher"))
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in (3, 9)]
    decoder = SpeculativeDecoder(model, window=1, max_tokens=32)
    own = [decoder.generate(prompt, 10, eos_token_id=-1).tokens for prompt in prompts]
    assert same_next_token(model, prompts, own) == 1.0

    other = [[*text[:6], (text[6] + 1) % VOCAB, *text[7:]] for text in own]
    same = 0
    for prompt, text in zip(prompts, other, strict=True):
        for i, token in enumerate(text):
            same += int(model(torch.tensor([[*prompt, *text[:i]]])).logits[0, -1].argmax()) == token
    assert 12 <= same < 20
    assert same_next_token(model, prompts, other) == same / 20

    for layer in (1, 2):  # a deleted layer adds its MLP only
        model.model.layers[layer].self_attn.o_proj.weight.data.zero_()
    zeroed = same_next_token(model, prompts, own)
    original = load_model(tmp_path / "teacher")
    assert same_next_token(original, prompts, own, deleted=[1, 2]) == zeroed < 1
