"""The tuned teacher: the very windows of align and distill, the loss, and that everything trains."""

import pytest
import torch
from safetensors.torch import load_file
from speculation import NARROW, tiny_model
from test_distill import TUNE, LargestTensor, windows
from tiny import VOCAB
from torch.nn import functional as F

from llamba_kernels.distill import align, distill, tune
from llamba_kernels.distill.evaluate import evaluate_windows
from llamba_kernels.distill.forward import fast_autocast, frozen_casts
from llamba_kernels.distill.losses import next_token_loss
from llamba_kernels.distill.text import read_text, token_windows
from llamba_kernels.distill.tune import Tuning
from llamba_kernels.models import load_model, load_tokenizer


class Stop(Exception):
    pass


@pytest.fixture
def teacher(folders):
    return load_model(folders / "teacher")


def test_it_sees_the_windows_of_align_and_distill_in_their_order_and_number(folders, tmp_path, monkeypatch):
    seen = {}

    def record(command, objective, windows, recipe, *_):
        assert len(windows) == recipe.steps * recipe.batch
        seen[command] = windows
        raise Stop

    monkeypatch.setattr("llamba_kernels.distill.stage.run_training", record)
    common = {"data": folders / "text.txt", "window": 32, "batch": 2, "seed": 3}
    models = folders / "converted", folders / "teacher"
    for call in (
        lambda: align(*models, tmp_path / "a", tokens=650, **common),  # ten steps and a bit
        lambda: distill(*models, tmp_path / "d", tokens=390, **common),
        lambda: tune(models[1], tmp_path / "t", align_tokens=650, distill_tokens=390, **common),
    ):
        with pytest.raises(Stop):
            call()
    assert len(seen["align"]) == 20 and len(seen["distill"]) == 12
    assert torch.equal(seen["tune"], torch.cat([seen["align"], seen["distill"]]))


def test_it_ends_with_a_better_model_of_the_text_of_which_every_parameter_moved(folders, tmp_path):
    text = folders / "text.txt"
    result = tune(folders / "teacher", tmp_path / "tuned", text, **TUNE)
    assert result.steps == 16 and result.tokens == 1024
    before, after = (load_file(path / "model.safetensors") for path in (folders / "teacher", tmp_path / "tuned"))
    assert before.keys() == after.keys()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    tokenizer = load_tokenizer(folders / "teacher")
    ids = token_windows(tokenizer, read_text(text).held_out, 32, 64)
    first, last = (
        evaluate_windows(load_model(path), tokenizer, ids).perplexity
        for path in (folders / "teacher", tmp_path / "tuned")
    )
    assert last < 0.9 * first


def test_the_loss_is_cross_entropy_and_the_head_has_its_gradient():
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (75, 50))
    labels = torch.randint(50, (75,), generator=generator)
    mine, plain = ([t.clone().requires_grad_() for t in (hidden, head)] for _ in range(2))
    loss = next_token_loss(*mine, labels, chunk=4)  # nineteen chunks in three blocks, the last ones cut short
    expected = F.cross_entropy(plain[0] @ plain[1].T, labels)
    (2 * loss).backward()
    (2 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(mine, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("tied", [True, False])
def test_the_objective_is_the_models_own_loss_tied_or_not(tied):
    changes = {**NARROW, "vocab_size": VOCAB, "tie_word_embeddings": tied, "initializer_range": 0.02}
    model, ids = tiny_model(["attention", "attention"], **changes), windows()
    objective = Tuning(model)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in model.parameters()}
    model(ids, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = objective(ids)["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(model(ids, labels=ids).loss.item(), rel=0.01)  # the objective may be in bf16
    for name, parameter in model.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < 0.05, f"{name}: {error}"


def test_no_more_than_eight_chunks_of_logits_exist(teacher):
    objective = Tuning(teacher)
    objective.chunk = 6  # eight are more than the head's 32 rows
    with LargestTensor() as largest:
        objective(windows(4, 48))["loss"].backward()
    assert largest.rows == 48  # of 4 * 47 positions


def test_frozen_casts_change_no_bit_and_leave_nothing_behind(teacher):
    device, ids = torch.device("cpu"), windows()
    trained = teacher.model.layers[1].self_attn.q_proj.weight
    teacher.requires_grad_(False)
    trained.requires_grad_(True)
    parameters = list(teacher.named_parameters(remove_duplicate=False))

    def run():
        with fast_autocast(device):
            loss = teacher(ids).logits.float().square().mean()
        (gradient,) = torch.autograd.grad(loss, trained)
        return loss, gradient

    expected = run()
    with pytest.raises(Stop), frozen_casts(teacher, device=device):
        assert teacher.model.layers[1].self_attn.q_proj.weight is trained
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(run(), expected, strict=True))
        raise Stop
    assert [(name, id(p)) for name, p in parameters] == [
        (name, id(p)) for name, p in teacher.named_parameters(remove_duplicate=False)
    ]
