"""What the training stages have in common: model folders in, one out, resumable in between."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models import LlambaForCausalLM, load_model, load_tokenizer
from .folders import check_absent, locked, new_folder, save_model
from .forward import frozen_casts
from .text import read_text, token_windows
from .training import Objective, Recipe, Training, run_training, training_device


def run_stage(
    command: str,
    objective: Callable[..., Objective],
    student_dir: str | Path,
    teacher_dir: str | Path,
    out_dir: str | Path,
    data: str | Path | Sequence[str | Path] | None,
    recipe: Recipe,
    save_every: int,
    **options: float,
) -> Training:
    """Train `objective(student, teacher, **options)`; write the student, its tokenizer and metrics.jsonl to `out_dir`.

    Until that folder is complete everything is in `out_dir`.partial; the same call resumes from there.
    """
    out_dir = Path(out_dir)
    with stage(command, out_dir, recipe):
        student, teacher = load_model(student_dir), load_model(teacher_dir)
        tokenizer = load_tokenizer(student_dir, student)
        check_pair(command, student, teacher)
        windows = stage_windows(command, tokenizer, read_text(data).train, recipe)
        models = {"student": student, "teacher": teacher}
        loss = objective(student, teacher, **options)
        return train_into(out_dir, command, loss, student, tokenizer, windows, recipe, models, save_every, **options)


@contextlib.contextmanager
def stage(command: str, out_dir: Path, *recipes: Recipe) -> Iterator[None]:
    """A block that alone, of all processes, makes `out_dir`; refused before any work if that cannot end well."""
    check_absent(command, out_dir)
    for recipe in recipes:
        recipe.check(command)
    with locked(command, partial(out_dir), out_dir):
        check_absent(command, out_dir)  # another process may have ended just now
        yield


def partial(out_dir: Path) -> Path:
    return out_dir.with_name(out_dir.name + ".partial")


def stage_windows(
    command: str, tokenizer: PreTrainedTokenizerBase, chunks: Sequence[str], recipe: Recipe, of: str | None = None
) -> Tensor:
    """The windows of `recipe`, (count, window): those that the stage `of` sees with it, by default `command` itself."""
    count = recipe.steps * recipe.batch
    windows = token_windows(tokenizer, chunks, recipe.window, count, f"{of or command} {recipe.seed}")
    if len(windows) < count:
        raise ValueError(
            f"{command}: tokens must be at most what the text holds, {windows.numel()} in windows of {recipe.window}; "
            f"got {recipe.tokens}"
        )
    return windows


def train_into(
    out_dir: Path,
    command: str,
    objective: Objective,
    model: LlambaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    windows: Tensor,
    recipe: Recipe,
    models: Mapping[str, LlambaForCausalLM],
    save_every: int,
    **options: float,
) -> Training:
    """Train, then write `model`, its tokenizer and metrics.jsonl to `out_dir`; `out_dir`.partial holds all before.

    `models` and `options` are what, besides the windows and the recipe, decides the result.
    """
    work_dir = partial(out_dir)
    sources = {"command": command, **{name: model_digest(each) for name, each in models.items()}, **options}
    with frozen_casts(*models.values(), device=training_device()):
        training = run_training(command, objective, windows, recipe, work_dir, sources, save_every)
        objective.finish(windows)
    with new_folder(out_dir, command) as staging:
        save_model(model, tokenizer, staging)
        shutil.copy(work_dir / "metrics.jsonl", staging)
    shutil.rmtree(work_dir)
    return training


def model_digest(model: LlambaForCausalLM) -> str:
    """A name for what a model computes: its parameters and configuration, wherever its folder lies (0.5 s per GB)."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def check_pair(command: str, student: LlambaForCausalLM, teacher: LlambaForCausalLM):
    if not student.config.mamba_layers:
        raise ValueError(f"{command}: student must have mamba1 or mamba2 layers; got none")
    for field in ("vocab_size", "hidden_size", "num_hidden_layers"):
        mine, theirs = getattr(student.config, field), getattr(teacher.config, field)
        if mine != theirs:
            raise ValueError(f"{command}: student must have the teacher's {field}, {theirs}; got {mine}")
    for i in student.config.mamba_layers:
        if teacher.config.layers[i] == "none":
            raise ValueError(f"{command}: teacher must have a token mixer where the student has; got none in layer {i}")
