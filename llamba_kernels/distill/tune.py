"""Train the teacher itself by next-token cross entropy: the control that says what the text alone teaches.

A hybrid that has trained on a text may owe part of its score to that text rather than to the teacher. So the teacher,
with all its parameters, gets as many steps on the same tokens.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..models import LlambaForCausalLM, load_model, load_tokenizer
from .forward import embed, fast_autocast, read_out, run_layers
from .losses import CHUNK, next_token_loss
from .stage import stage, stage_windows, train_into
from .text import read_text
from .training import Objective, Recipe, Training


class Tuning(Objective):
    """The mean cross entropy of the next token; every parameter trains."""

    def __init__(self, model: LlambaForCausalLM):
        trained = {"model": model.model}
        if model.lm_head.weight is not model.model.embed_tokens.weight:
            trained["lm_head"] = model.lm_head  # a tied head is in a checkpoint already, as the embedding
        super().__init__(trained, [model])
        self.chunk = CHUNK

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        (model,) = self._models
        with fast_autocast(input_ids.device):
            hidden, context = embed(model, input_ids)
            hidden = read_out(model, run_layers(model, hidden, context))
            loss = next_token_loss(
                hidden[:, :-1].flatten(0, 1), model.lm_head.weight, input_ids[:, 1:].flatten(), self.chunk
            )
        return {"loss": loss}


def tune(
    teacher_dir: str | Path,
    out_dir: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    align_tokens: int = 131_072,
    distill_tokens: int = 49_152,
    lr: float = 1e-4,
    window: int = 512,
    batch: int = 1,
    seed: int = 0,
    save_every: int = 50,
) -> Training:
    """Tune the model in `teacher_dir` and write it to `out_dir`.

    It takes as many steps as `align` with `align_tokens` and `distill` with `distill_tokens` of the same seed, window
    and batch take together, and in each the very windows that they see there, in their order.

    lr: the best of 3e-5, 1e-4 and 3e-4 for held-out text, with quickstart's teacher and text: the control is a strong
    one. The other numbers are those of `training.Recipe`; an interrupted call, repeated, resumes (see
    `training.run_training`).
    """
    parts = {
        command: Recipe(tokens=tokens, lr=lr, window=window, batch=batch, seed=seed)
        for command, tokens in (("align", align_tokens), ("distill", distill_tokens))
    }
    out_dir = Path(out_dir)
    with stage("tune", out_dir, *parts.values()):
        model = load_model(teacher_dir)
        tokenizer = load_tokenizer(teacher_dir, model)
        text = read_text(data).train
        windows = [stage_windows("tune", tokenizer, text, part, of=command) for command, part in parts.items()]
        windows = torch.cat(windows)
        recipe = Recipe(tokens=windows.numel(), lr=lr, window=window, batch=batch, seed=seed)
        models = {"teacher": model}
        return train_into(out_dir, "tune", Tuning(model), model, tokenizer, windows, recipe, models, save_every)
