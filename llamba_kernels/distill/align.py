"""Train each mixer alone to produce, from the teacher's own inputs, what the attention layer produced there.

Gradient steps come first; then, with the mixers' features fixed, the best out_proj is a least-squares problem and is
solved exactly: gradient descent is slow just there, and the solution takes about a seventh off the error.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..models import LlambaForCausalLM
from .convert import mixer_inputs, solve_ridge
from .forward import fast_autocast
from .progress import track
from .stage import run_stage
from .training import Objective, Recipe, Training

REFIT_TOKENS = 32_768  # of the run's windows, the last ones: some tens of tokens for each of a mixer's channels
REFIT_RIDGE = 1e-2


class Alignment(Objective):
    """The mean over converted layers of |mixer(u) - attention(u)|^2 / |attention(u)|^2, u from the teacher.

    Layers do not see each other: an error below is not passed on, so every mixer has a clean target from the first
    step, and one teacher pass serves all of them.
    """

    def __init__(self, student: LlambaForCausalLM, teacher: LlambaForCausalLM):
        layers = student.config.mamba_layers
        super().__init__({str(i): student.model.layers[i].mamba for i in layers}, [student, teacher])
        self.layers = layers

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        _, teacher = self._models
        loss = 0.0
        for layer, u, target in mixer_inputs(teacher, self.layers, input_ids):
            with fast_autocast(u.device):
                output = self.trained[str(layer)](u)
            loss = loss + (output.float() - target.float()).square().sum() / target.float().square().sum()
        return {"loss": loss / len(self.layers)}

    @torch.no_grad()
    def finish(self, windows: Tensor):
        """Move every out_proj to the ridge regression of what its mixer still misses of the attention's output."""
        _, teacher = self._models
        mixers = {i: self.trained[str(i)] for i in self.layers}
        gram = {i: torch.zeros(m.d_inner, m.d_inner) for i, m in mixers.items()}
        missing = {i: torch.zeros(m.d_inner, m.out_proj.out_features) for i, m in mixers.items()}
        windows = windows[-max(1, REFIT_TOKENS // windows.shape[1]) :]
        for batch in track(windows.split(4), "align  refit"):
            for i, u, target in mixer_inputs(teacher, self.layers, batch.to(teacher.device)):
                with fast_autocast(u.device):
                    features = mixers[i].features(u)
                    output = mixers[i].out_proj(features)
                features = features.flatten(0, 1).float()
                gram[i] += (features.T @ features).cpu()
                missing[i] += (features.T @ (target.float() - output.float()).flatten(0, 1)).cpu()
        for i, mixer in mixers.items():
            mixer.out_proj.weight += solve_ridge(gram[i], missing[i], REFIT_RIDGE).T.to(mixer.out_proj.weight)


def align(
    student_dir: str | Path,
    teacher_dir: str | Path,
    out_dir: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    tokens: int = 131_072,
    lr: float = 8e-3,
    window: int = 512,
    batch: int = 1,
    seed: int = 0,
    save_every: int = 25,
) -> Training:
    """Align the mixers of `student_dir` with the attention of `teacher_dir` and write the model to `out_dir`.

    The loss returned is that of the last gradient steps, before the closing least-squares fit improves on it.
    The numbers are those of `training.Recipe`; an interrupted call, repeated, resumes (see `training.run_training`).
    """
    recipe = Recipe(tokens=tokens, lr=lr, window=window, batch=batch, seed=seed)
    return run_stage("align", Alignment, student_dir, teacher_dir, out_dir, data, recipe, save_every)
