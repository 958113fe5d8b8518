"""Train the hybrid as a whole to give the teacher's next-token distribution."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..models import LlambaForCausalLM
from .forward import embed, fast_autocast, read_out, run_layers
from .losses import CHUNK, distillation_loss
from .stage import run_stage
from .training import Objective, Recipe, Training


class Distillation(Objective):
    """KL(teacher || student) per token, plus ce_weight * cross entropy.

    The mixers train; with rest_lr, the learning rate of what came from the teacher, so does everything from the first
    converted layer to the final norm. The embedding, the head and the layers below stay the teacher's.
    """

    def __init__(
        self,
        student: LlambaForCausalLM,
        teacher: LlambaForCausalLM,
        ce_weight: float = 0.0,
        rest_lr: float = 0.0,
    ):
        mixers = student.config.mamba_layers
        trained = {str(i): student.model.layers[i].mamba for i in mixers}
        if rest_lr:
            for i in range(min(mixers), len(student.model.layers)):
                parts = student.model.layers[i].named_children()
                trained[f"rest{i}"] = nn.ModuleDict({name: part for name, part in parts if name != "mamba"})
            trained["norm"] = student.model.norm
        super().__init__(trained, [student, teacher])
        self.mixers, self.ce_weight, self.rest_lr = mixers, ce_weight, rest_lr
        self.chunk = CHUNK
        self.shared = shared_layers(student, teacher)

    def parameter_groups(self, lr: float) -> list[dict]:
        mixers = [p for i in self.mixers for p in self.trained[str(i)].parameters()]
        known = set(map(id, mixers))
        rest = [p for p in self.trained.parameters() if id(p) not in known]
        groups = [{"params": mixers, "lr": lr}]
        return [*groups, {"params": rest, "lr": self.rest_lr}] if rest else groups

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        student, teacher = self._models
        with fast_autocast(input_ids.device):
            with torch.no_grad():
                # What is frozen and equal in both models, up to the first converted layer, runs once.
                prefix, context = embed(teacher, input_ids)
                prefix = run_layers(teacher, prefix, context, 0, self.shared)
                target = read_out(teacher, run_layers(teacher, prefix, context, self.shared))
                if self.shared == 0:
                    prefix, _ = embed(student, input_ids)
            hidden = read_out(student, run_layers(student, prefix, context, self.shared))
            loss = distillation_loss(
                hidden[:, :-1].flatten(0, 1),
                student.lm_head.weight,
                target[:, :-1].flatten(0, 1),
                teacher.lm_head.weight,
                input_ids[:, 1:].flatten(),
                self.ce_weight,
                self.chunk,
            )
        return {"loss": loss}


def shared_layers(student: LlambaForCausalLM, teacher: LlambaForCausalLM) -> int:
    """How many leading layers, with the embedding, have the same weights in both models."""
    if not _equal(student.model.embed_tokens, teacher.model.embed_tokens):
        return 0
    pairs = enumerate(zip(student.model.layers, teacher.model.layers, strict=True))
    return next((i for i, (mine, theirs) in pairs if not _equal(mine, theirs)), 0)


def _equal(mine: nn.Module, theirs: nn.Module) -> bool:
    mine, theirs = mine.state_dict(), theirs.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def distill(
    student_dir: str | Path,
    teacher_dir: str | Path,
    out_dir: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    tokens: int = 49_152,
    lr: float = 1e-3,
    window: int = 512,
    batch: int = 1,
    seed: int = 0,
    ce_weight: float = 0.0,
    rest_lr: float = 0.0,
    save_every: int = 25,
) -> Training:
    """Distil the model in `teacher_dir` into the hybrid in `student_dir` and write the result to `out_dir`.

    ce_weight and rest_lr are `Distillation`'s, the other numbers those of `training.Recipe`; an interrupted call,
    repeated, resumes (see `training.run_training`).
    """
    for name, value in (("ce_weight", ce_weight), ("rest_lr", rest_lr)):
        if not 0 <= value < math.inf:
            raise ValueError(f"distill: {name} must be finite and not negative; got {value}")
    recipe = Recipe(tokens=tokens, lr=lr, window=window, batch=batch, seed=seed)
    options = {"ce_weight": ce_weight, "rest_lr": rest_lr}
    return run_stage("distill", Distillation, student_dir, teacher_dir, out_dir, data, recipe, save_every, **options)
