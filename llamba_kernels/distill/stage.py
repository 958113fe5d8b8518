"""What alignment and distillation have in common: two model folders in, one out, resumable in between."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..models import LlambaForCausalLM, load_model, load_tokenizer
from .folders import check_absent, new_folder, save_model
from .text import read_text, token_windows
from .training import Objective, Recipe, Training, run_training


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
    check_absent(command, out_dir)
    recipe.check(command)
    student, teacher = load_model(student_dir), load_model(teacher_dir)
    tokenizer = load_tokenizer(student_dir, student)
    check_pair(command, student, teacher)
    count = recipe.steps * recipe.batch
    windows = token_windows(tokenizer, read_text(data).train, recipe.window, count, f"{command} {recipe.seed}")

    work_dir = out_dir.with_name(out_dir.name + ".partial")
    sources = {"command": command, "student": model_digest(student), "teacher": model_digest(teacher), **options}
    loss = objective(student, teacher, **options)
    training = run_training(command, loss, windows, recipe, work_dir, sources, save_every)
    loss.finish(windows)
    with new_folder(out_dir) as staging:
        save_model(student, tokenizer, staging)
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
        raise ValueError(
            f"{command}: student must have mamba2 layers; got attention in all {len(student.model.layers)}"
        )
    for field in ("vocab_size", "hidden_size", "num_hidden_layers"):
        mine, theirs = getattr(student.config, field), getattr(teacher.config, field)
        if mine != theirs:
            raise ValueError(f"{command}: student must have the teacher's {field}, {theirs}; got {mine}")
