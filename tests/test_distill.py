"""The distillation stages on a tiny teacher: each end to end, and what each promises."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import CONVERTED, VOCAB
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamba_kernels.distill import align, convert, distill, evaluate, rank_layers, tune
from llamba_kernels.distill.align import Alignment
from llamba_kernels.distill.convert import convert_model, mixer_inputs
from llamba_kernels.distill.distill import Distillation, shared_layers
from llamba_kernels.distill.evaluate import evaluate_windows
from llamba_kernels.distill.losses import distillation_loss
from llamba_kernels.distill.rank import rank_model
from llamba_kernels.distill.stage import model_digest
from llamba_kernels.distill.text import read_text, token_windows
from llamba_kernels.models import LlambaConfig, LlambaForCausalLM, load_model, load_tokenizer

LAYERS = CONVERTED
RUN = {"tokens": 1024, "window": 32, "batch": 2, "lr": 3e-3}  # 16 steps
TUNE = {"align_tokens": 640, "distill_tokens": 384, "window": 32, "batch": 2, "lr": 3e-3}  # 10 + 6 steps
RUNS = {"align": RUN, "distill": {**RUN, "ce_weight": 0.5, "rest_lr": 1e-3}, "tune": TUNE}


@pytest.fixture
def teacher(folders):
    return load_model(folders / "teacher")


def windows(count=4, length=48, seed=0):
    return torch.randint(VOCAB, (count, length), generator=torch.Generator().manual_seed(seed))


def test_every_stage_end_to_end(folders, tmp_path):
    text, source = folders / "text.txt", folders / "teacher"
    ranking = rank_layers(source, text, tokens=256, window=64)
    assert sorted(ranking.order) == [0, 1, 2, 3] and ranking.least_important(2) == sorted(ranking.order[:2])

    aligned = align(folders / "converted", source, tmp_path / "aligned", text, **RUN)
    distilled = distill(tmp_path / "aligned", source, tmp_path / "distilled", text, ce_weight=0.1, **RUN)
    assert aligned.steps == distilled.steps == 16 and aligned.tokens == 1024
    for stage, result in (("aligned", aligned), ("distilled", distilled)):
        lines = [json.loads(line) for line in (tmp_path / stage / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 17)) and lines[-1]["tokens"] == 1024
        assert lines[-1]["seconds"] > 0
        assert result.loss == lines[-1]["loss"]  # a tenth of 16 steps
        assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*.staging"))

    # Steps see different windows, whose losses differ by more than a step gains: compare on the same held-out ones.
    original = load_model(source)
    ids = token_windows(load_tokenizer(source), read_text(text).held_out, 32, 64)
    stages = (Alignment, folders / "converted", "aligned"), (Distillation, tmp_path / "aligned", "distilled")
    for objective, before, after in stages:
        losses = [objective(load_model(path), original)(ids)["loss"].item() for path in (before, tmp_path / after)]
        assert losses[1] < losses[0]

    before = load_file(folders / "converted" / "model.safetensors")
    after = load_file(tmp_path / "distilled" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".mamba." in name for name in changed), "only mixers train"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "distilled").config.mamba_layers == LAYERS
    assert AutoTokenizer.from_pretrained(tmp_path / "distilled").vocab_size <= VOCAB
    result = evaluate(tmp_path / "distilled", text, tokens=256, window=64)
    assert result.perplexity > 1 and result.tokens == 4 * 63


def test_ranking_is_the_kl_of_deleting_each_layer(teacher):
    ids = windows()
    ranking = rank_model(teacher, ids, every=1)
    logits = teacher(ids).logits.log_softmax(-1)
    for i, layer in enumerate(teacher.model.layers):
        mix, layer.mix = layer.mix, lambda u, context, handover=None: torch.zeros_like(u)
        without = teacher(ids).logits.log_softmax(-1)
        layer.mix = mix
        kl = (logits.exp() * (logits - without)).sum(-1).mean()
        assert ranking.kl[i] == pytest.approx(kl.item(), rel=0.05, abs=1e-3)  # the ranking may run in bf16
    assert ranking.kl[ranking.order[0]] == min(ranking.kl.values())
    with pytest.raises(ValueError, match="rank-layers: count must be in 1..4, the attention layers; got 5"):
        ranking.least_important(5)
    hybrid, _ = convert_model(teacher, [1, 2], ids)
    assert sorted(rank_model(hybrid, ids).order) == [0, 3]


def test_conversion_transfers_weights_and_is_no_worse_than_deletion(teacher):
    ids = windows()
    student, conversion = convert_model(teacher, LAYERS, ids)
    assert conversion.layers == LAYERS and all(0 < conversion.error[i] < 1 for i in LAYERS)
    for layer, u, target in mixer_inputs(teacher, LAYERS, ids):
        mixer, attention = student.model.layers[layer].mamba, teacher.model.layers[layer].self_attn
        _, x, B, C, _ = mixer.in_proj.weight.split([64, 32, 32, 64, 4])
        for rows, source in ((x, attention.v_proj), (B, attention.k_proj), (C, attention.q_proj)):
            assert torch.equal(rows, source.weight)
        assert torch.equal(mixer.out_proj.weight, attention.o_proj.weight)
        error = (mixer(u) - target.float()).square().sum() / target.float().square().sum()
        assert error.item() == pytest.approx(conversion.error[layer], rel=1e-3)
        best = mixer.norm.weight.clone()
        for change in (0.9, 1.1):  # the fit is a minimum: a little more or less is worse
            mixer.norm.weight.data = best * change
            assert (mixer(u) - target.float()).square().sum() / target.float().square().sum() > error
        mixer.norm.weight.data = best
    kept = student.model.layers[0].self_attn.q_proj.weight
    assert kept is teacher.model.layers[0].self_attn.q_proj.weight
    assert student.lm_head.weight is student.model.embed_tokens.weight


def test_heads_that_decoding_cannot_run_are_refused_before_any_work():
    config = LlambaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=24)
    rule = "convert: head_dim must be a multiple of 16 up to 256, the state sizes that decoding runs; got 24"
    with pytest.raises(ValueError, match=rule):
        convert_model(LlambaForCausalLM(config), [1], windows())


def test_alignment_loss_is_the_relative_error_on_teacher_inputs(teacher):
    student, conversion = convert_model(teacher, LAYERS, windows())
    loss = Alignment(student, teacher)(windows())["loss"]
    mean = sum(conversion.error.values()) / len(LAYERS)
    assert loss.item() == pytest.approx(mean, rel=0.02)  # bf16 where the CPU has it


def test_alignment_ends_in_the_least_squares_out_proj(teacher):
    student, _ = convert_model(teacher, LAYERS, windows())
    objective, ids = Alignment(student, teacher), windows(8, 48)
    before = objective(ids)["loss"].item()
    objective.finish(ids)
    after = objective(ids)["loss"].item()
    assert after < 0.9 * before
    for i in LAYERS:  # at a minimum, any other direction is uphill
        weight = student.model.layers[i].mamba.out_proj.weight
        with torch.no_grad():
            step = 0.2 * weight.norm() / weight.numel() ** 0.5 * torch.randn_like(weight)
            weight += step
            assert objective(ids)["loss"].item() > after
            weight -= step


def test_distillation_loss_is_kl_plus_weighted_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(37, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    heads = [torch.randn(50, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    labels = torch.randint(50, (37,), generator=generator)
    for ce_weight in (0.0, 0.3):
        leaf, plain = student.clone().requires_grad_(), student.clone().requires_grad_()
        loss = distillation_loss(leaf, heads[0], teacher, heads[1], labels, ce_weight, chunk=8)
        log_q, log_p = (plain @ heads[0].T).log_softmax(-1), (teacher @ heads[1].T).log_softmax(-1)
        expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        expected = expected + ce_weight * torch.nn.functional.cross_entropy(plain @ heads[0].T, labels)
        (2 * loss).backward()
        (2 * expected).backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(leaf.grad, plain.grad, rtol=1e-4, atol=1e-7)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any result had, among those with a vocabulary axis."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[-1] == VOCAB:
                self.rows = max(self.rows, leaf.numel() // VOCAB)
        return result


def test_no_more_than_one_chunk_of_logits_exists(teacher):
    objective = Distillation(convert_model(teacher, LAYERS, windows())[0], teacher)
    objective.chunk = 40  # more than the head's 32 rows
    with LargestTensor() as largest:
        objective(windows(4, 48))["loss"].backward()
    assert largest.rows == 40  # of 4 * 47 positions; a tensor of logits for all of them would show here


def test_the_frozen_prefix_is_shared_only_where_it_is_equal(teacher, folders):
    student, _ = convert_model(teacher, LAYERS, windows())
    assert shared_layers(student, teacher) == 1
    loss = Distillation(student, teacher)(windows())["loss"].item()
    other = load_model(folders / "converted")
    other.load_state_dict(student.state_dict())
    other.model.embed_tokens.weight.data += 1e-7
    assert shared_layers(other, teacher) == 0
    assert Distillation(other, teacher)(windows())["loss"].item() == pytest.approx(loss, rel=0.02)


def test_with_rest_lr_all_from_the_first_mixer_on_trains_at_its_own_rate(teacher):
    student, _ = convert_model(teacher, LAYERS, windows())
    objective = Distillation(student, teacher, rest_lr=1e-4)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    mixers, rest = ({names[id(p)] for p in group["params"]} for group in objective.parameter_groups(3e-3))
    assert [group["lr"] for group in objective.parameter_groups(3e-3)] == [3e-3, 1e-4]
    assert mixers == {name for name in names.values() if ".mamba." in name}
    frozen = ("model.embed_tokens", "model.layers.0.")  # the head is the embedding
    assert rest == {name for name in names.values() if ".mamba." not in name and not name.startswith(frozen)}
    objective(windows())["loss"].backward()
    assert {name for name, p in student.named_parameters() if p.grad is not None} == mixers | rest


def test_evaluation_is_the_models_own_loss(teacher, folders):
    ids = windows(4, 48)
    tokenizer = AutoTokenizer.from_pretrained(folders / "teacher")
    result = evaluate_windows(teacher, tokenizer, ids)
    nll = teacher(ids, labels=ids).loss.item()
    assert result.perplexity == pytest.approx(torch.tensor(nll).exp().item(), rel=0.02)
    count = sum(len(tokenizer.decode(row[1:]).encode()) for row in ids)
    assert result.bits_per_byte == pytest.approx(nll / 0.6931472 * 4 * 47 / count, rel=0.02)
    assert evaluate_windows(teacher, tokenizer, ids, deleted=LAYERS).perplexity != result.perplexity


def test_a_digest_tells_models_apart_and_not_folders(folders, tmp_path):
    shutil.copytree(folders / "teacher", tmp_path / "copy")
    digest = model_digest(load_model(folders / "teacher"))
    assert model_digest(load_model(tmp_path / "copy")) == digest
    config = tmp_path / "copy" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "rms_norm_eps": 1e-3}))
    assert model_digest(load_model(tmp_path / "copy")) != digest
    assert model_digest(load_model(folders / "converted")) != digest


def test_the_loss_is_the_mean_over_the_last_tenth_of_the_steps(folders, tmp_path):
    run = {**RUN, "tokens": 24 * 64, "window": 32, "batch": 2}
    result = align(folders / "converted", folders / "teacher", tmp_path / "out", folders / "text.txt", **run)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 24 and result.loss == pytest.approx(sum(losses[22:]) / 2)


def test_loss_that_is_not_finite_stops_the_run(folders, tmp_path):
    with pytest.raises(ValueError, match="align: lr must keep the loss finite; got loss nan with lr 1e"):
        align(folders / "converted", folders / "teacher", tmp_path / "o", folders / "text.txt", **{**RUN, "lr": 1e30})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda f, out: convert(f / "teacher", out, [], f / "text.txt"),
            "convert: layers must name at least one layer",
        ),
        (
            lambda f, out: convert(f / "teacher", out, [4], f / "text.txt"),
            "convert: layers must be attention layers of the teacher; got",
        ),
        (
            lambda f, out: convert(f / "converted", out, [1], f / "text.txt"),
            "convert: layers must be attention layers of the teacher",
        ),
        (
            lambda f, out: convert(f / "teacher", f, [1], f / "text.txt"),
            "convert: out_dir must not exist yet, nothing is overwritten;",
        ),
        (
            lambda f, out: align(f / "teacher", f / "teacher", out),
            "align: student must have mamba1 or mamba2 layers; got none",
        ),
        (lambda f, out: align(f / "converted", f / "teacher", out, lr=0), "align: lr must be positive; got 0"),
        (
            lambda f, out: align(f / "converted", f / "teacher", out, lr=float("inf")),
            "align: lr must be finite; got inf",
        ),
        (
            lambda f, out: align(f / "converted", f / "teacher", out, seed=-1),
            "align: seed must be 0 to 2**32 - 1; got -1",
        ),
        (
            lambda f, out: distill(f / "converted", f / "teacher", out, tokens=9),
            "distill: tokens must be at least one step's, window x batch = ",
        ),
        (
            lambda f, out: distill(f / "converted", f / "teacher", out, f / "text.txt", tokens=10**7, window=32),
            "distill: tokens must be at most what the text holds, ",
        ),
        (lambda f, out: tune(f / "teacher", out, align_tokens=9), "tune: tokens must be at least one step's, window x"),
        (
            lambda f, out: tune(f / "teacher", out, f / "text.txt", distill_tokens=10**7, window=32),
            "tune: tokens must be at most what the text holds, ",
        ),
        (
            lambda f, out: distill(f / "converted", f / "teacher", out, ce_weight=-1),
            "distill: ce_weight must be finite and not negative; got -1",
        ),
        (
            lambda f, out: distill(f / "converted", f / "teacher", out, rest_lr=-1),
            "distill: rest_lr must be finite and not negative; got -1",
        ),
        (
            lambda f, out: evaluate(f / "teacher", f / "text.txt", deleted=[4], window=32),
            "eval: deleted must be in 0..3; got 4",
        ),
    ],
)
def test_errors_are_one_sentence(call, message, folders, tmp_path):
    with pytest.raises(ValueError) as error:
        call(folders, tmp_path / "out")
    assert str(error.value).startswith(message)
    assert not (tmp_path / "out").exists()
