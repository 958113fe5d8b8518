"""Distillation where teacher or student have other layers than attention and Mamba-2."""

import pytest
import torch
from helpers import assert_refused
from speculation import NARROW, VOCAB, tiny_model

from llamba_kernels.distill.align import Alignment
from llamba_kernels.distill.convert import convert_model
from llamba_kernels.distill.distill import Distillation
from llamba_kernels.distill.forward import embed, read_out, run_layers
from llamba_kernels.distill.rank import rank_model
from llamba_kernels.distill.stage import check_pair

SCALED = {"embedding_multiplier": 2.0, "residual_multiplier": 0.6, "logits_divisor": 1.5, **NARROW}
KINDS = ["attention", "none", "attention", "mamba1"]
MLPS = [True, True, False, True]


@pytest.fixture(scope="module")
def teacher():
    return tiny_model(KINDS, mlp_layers=MLPS, mamba1_selection="input", **SCALED)


@pytest.fixture
def windows():
    return torch.randint(VOCAB, (6, 16))


def test_stopping_between_layers_gives_the_model_s_own_logits(teacher, windows):
    with torch.no_grad():
        hidden, context = embed(teacher, windows)
        hidden = run_layers(teacher, run_layers(teacher, hidden, context, 0, 2), context, 2)
        logits = teacher.lm_head(read_out(teacher, hidden))
        torch.testing.assert_close(logits, teacher(windows).logits)
        without, context = embed(teacher, windows)
        without = run_layers(teacher, without, context, deleted=[0, 3])
        assert not torch.allclose(without, hidden)


def test_conversion_keeps_what_is_not_converted(teacher, windows):
    student, conversion = convert_model(teacher, [2], windows)
    assert student.config.layers == ["attention", "none", "mamba2", "mamba1"] and conversion.error[2] <= 1
    assert student.model.layers[3].mamba is teacher.model.layers[3].mamba and not student.model.layers[2].has_mlp
    assert student(windows).logits.isfinite().all()


def test_mamba1_mixers_are_aligned_and_distilled(teacher, windows):
    """A student whose attention has become attention-initialised Mamba-1."""
    kinds = ["mamba1" if kind == "attention" else kind for kind in KINDS]
    student = tiny_model(kinds, mlp_layers=MLPS, mamba1_selection="input", seed=1, **SCALED)
    check_pair("align", student, teacher)
    alignment = Alignment(student, teacher)
    losses = [alignment(windows)["loss"]]
    losses[0].backward()
    assert all(p.grad is not None for p in student.model.layers[0].mamba.parameters())
    alignment.finish(windows)  # the best out_proj for these windows
    losses.append(alignment(windows)["loss"])
    assert losses[1] < losses[0]
    loss = Distillation(student, teacher, rest_lr=1e-3)(windows)["loss"]
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in student.model.layers[1].parameters())


def test_only_attention_is_ranked(teacher, windows):
    assert sorted(rank_model(teacher, windows).order) == [0, 2]


def test_a_teacher_without_a_mixer_where_the_student_has_one_is_refused(teacher):
    student = tiny_model(["mamba2"] * 4, **SCALED)
    sentence = "align: teacher must have a token mixer where the student has; got none in layer 1"
    assert_refused(ValueError, sentence, check_pair, "align", student, teacher)
