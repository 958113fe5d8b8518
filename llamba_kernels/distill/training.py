"""The training loop of every stage that trains: transformers' Trainer, with exact resume and JSONL metrics."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from .folders import publish, saving, sync, write_file
from .progress import Steps


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a training run, given its models and text.

    tokens: how many to train on. window: tokens per sequence. batch: sequences per step. lr: peak learning rate of
    AdamW, warmed up over `warmup` of the steps, then cosine to zero. seed: which windows, in which order.
    """

    tokens: int
    lr: float
    window: int = 512
    batch: int = 2
    warmup: float = 0.05
    seed: int = 0

    def check(self, command: str):
        for name in ("tokens", "lr", "window", "batch"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{command}: {name} must be positive; got {getattr(self, name)}")
        if not math.isfinite(self.lr):
            raise ValueError(f"{command}: lr must be finite; got {self.lr}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"{command}: seed must be 0 to 2**32 - 1; got {self.seed}")
        if self.tokens < self.window * self.batch:
            step = f"{self.window} x {self.batch} = {self.window * self.batch}"
            raise ValueError(
                f"{command}: tokens must be at least one step's, window x batch = {step}; got {self.tokens}"
            )

    @property
    def steps(self) -> int:
        return self.tokens // (self.window * self.batch)


@dataclass(frozen=True)
class Training:
    """A finished run: loss is the mean over the last tenth of the steps; seconds include interrupted parts.

    The loss is that of the steps as they were taken: `Objective.finish`, as in alignment, may improve on it.
    """

    steps: int
    tokens: int
    loss: float
    seconds: float


class Objective(nn.Module):
    """A loss over token windows. What trains is registered here, and only that is optimised and checkpointed.

    forward(input_ids) returns {"loss": scalar}. The models around the trained parts are frozen; each process of a
    distributed run keeps a copy of them.
    """

    def __init__(self, trained: Mapping[str, nn.Module], models: Iterable[nn.Module]):
        super().__init__()
        self._models = tuple(models)  # a tuple hides them from nn.Module's registration
        for model in self._models:
            model.requires_grad_(False)
        self.trained = nn.ModuleDict(trained).requires_grad_(True)

    def move(self, device: torch.device):
        for model in self._models:
            model.to(device)

    def parameter_groups(self, lr: float) -> list[dict]:
        """For the optimiser: what trains, with its peak learning rate."""
        return [{"params": list(self.parameters()), "lr": lr}]

    def finish(self, windows: Tensor):
        """What is left to do on the run's windows when the last step is taken; nothing, unless overridden."""


def run_training(
    command: str,
    objective: Objective,
    windows: Tensor,
    recipe: Recipe,
    work_dir: Path,
    sources: Mapping[str, str],
    save_every: int = 25,
) -> Training:
    """Train on (steps x batch, window) token ids in the given order, checkpointing to `work_dir`.

    A run that was interrupted, at any point and in any way, goes on from its last checkpoint and ends in the same
    bits as one that was not. `sources` says what else decides the result, by its content; a changed one is refused,
    as is a changed recipe.
    """
    digest = hashlib.sha256(windows.numpy().tobytes()).hexdigest()
    _claim(command, work_dir, {**asdict(recipe), **sources, "windows": digest})

    use_cpu = training_device().type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(work_dir / "staging"),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.lr,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, int(recipe.warmup * recipe.steps)),
        max_grad_norm=1.0,
        save_steps=save_every,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen, not averaged away
        train_sampling_strategy="sequential",  # the windows are shuffled already
        dataloader_pin_memory=not use_cpu,
        seed=recipe.seed,
        use_cpu=use_cpu,
        disable_tqdm=True,
        report_to="none",
    )
    shutil.rmtree(arguments.output_dir, ignore_errors=True)  # half a checkpoint, if a save was interrupted
    with Steps(command, recipe.steps) as steps:
        metrics = Metrics(command, work_dir / "metrics.jsonl", recipe, steps)
        objective.move(arguments.device)
        groups = objective.parameter_groups(recipe.lr)
        # The default beta 0.999 averages over more steps than a short run has.
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        trainer = Saver(
            command,
            work_dir,
            model=objective,
            args=arguments,
            train_dataset=Windows(windows),
            callbacks=[PublishCheckpoint(command, work_dir), metrics],
            optimizers=(optimizer, None),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=latest_checkpoint(work_dir))
    lines = read_metrics(metrics.path)
    tail = lines[-max(1, recipe.steps // 10) :]
    loss = sum(line["loss"] for line in tail) / len(tail)
    return Training(recipe.steps, windows.numel(), loss, lines[-1]["seconds"])


def training_device() -> torch.device:
    """Where Trainer trains: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def latest_checkpoint(work_dir: Path) -> str | None:
    found = sorted(work_dir.glob("checkpoint-*"), key=_step)
    return str(found[-1]) if found else None


def read_metrics(path: str | Path) -> list[dict]:
    """The lines of a metrics file: step, loss, lr, tokens, seconds. A last line that was cut off does not count."""
    lines = Path(path).read_text(errors="replace").splitlines()
    try:
        last = [json.loads(line) for line in lines[-1:]]
    except json.JSONDecodeError:  # a full disk or a power cut came amid the line
        last = []
    return [json.loads(line) for line in lines[:-1]] + last


class Windows(torch.utils.data.Dataset):
    def __init__(self, windows: Tensor):
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.windows[index]}


class Saver(Trainer):
    """A Trainer that says in one sentence what kept a checkpoint from being written, and leaves no half of it."""

    def __init__(self, command: str, work_dir: Path, **options):
        super().__init__(**options)
        self.command, self.work_dir = command, work_dir

    def _save_checkpoint(self, model, trial):
        with saving(self.command, self.work_dir, Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)


class PublishCheckpoint(TrainerCallback):
    """Trainer writes a checkpoint file by file; here it takes its final name, in one step, once it is complete."""

    def __init__(self, command: str, work_dir: Path):
        self.command, self.work_dir = command, work_dir

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        older = list(self.work_dir.glob("checkpoint-*"))
        name = f"checkpoint-{state.global_step}"
        with saving(self.command, self.work_dir, Path(args.output_dir)):
            sync(self.work_dir / "metrics.jsonl")  # a resumed run takes its steps up to the checkpoint from there
            publish(Path(args.output_dir) / name, self.work_dir / name)
        for folder in older:
            shutil.rmtree(folder)


class Metrics(TrainerCallback):
    """One JSON line per step; lines past the checkpoint that a run resumes from are dropped."""

    def __init__(self, command: str, path: Path, recipe: Recipe, steps: Steps):
        self.command, self.path, self.recipe, self.steps = command, path, recipe, steps

    def on_train_begin(self, args, state, control, **kwargs):
        lines = read_metrics(self.path) if self.path.exists() else []
        lines = [line for line in lines if line["step"] <= state.global_step]
        write_file(self.command, self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self.started = time.perf_counter() - (lines[-1]["seconds"] if lines else 0.0)
        self.steps.done(state.global_step)

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ValueError(
                f"{self.command}: lr must keep the loss finite; got loss {logs['loss']} with lr {self.recipe.lr}"
            )
        line = {
            "step": state.global_step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "tokens": state.global_step * self.recipe.batch * self.recipe.window,
            "seconds": round(time.perf_counter() - self.started, 3),
        }
        with saving(self.command, self.path), open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self.steps.done(state.global_step, f"loss {logs['loss']:.4f}")


def _claim(command: str, work_dir: Path, recipe: dict):
    """Write down what the run in `work_dir` is, or refuse to resume a different one."""
    path = work_dir / "recipe.json"
    if path.exists():
        before = json.loads(path.read_text())
        for name in sorted(before.keys() | recipe.keys()):
            if before.get(name) != recipe.get(name):
                raise ValueError(
                    f"{command}: {name} must be {before.get(name)} as in the interrupted run in {work_dir}, "
                    f"or delete that folder; got {recipe.get(name)}"
                )
        return
    write_file(command, path, json.dumps(recipe, indent=1))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])
