"""The whole line in one call: teacher -> ranking -> conversion -> alignment -> distillation -> evaluation -> decoding.

Every stage writes its folder or file into `out_dir` when it is complete, so a run that was interrupted goes on where it
stopped; align and distill also keep checkpoints within.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path

from rich.console import Console

from . import __version__
from .decode_bench import decode_bench, held_out_prompts
from .distill import align, convert, distill, evaluate, fetch_teacher, rank_layers
from .distill.rank import Ranking
from .distill.training import read_metrics
from .env import describe
from .models import load_model, load_tokenizer
from .report import ModelRow, results_plot, results_table
from .speculative import SpeculativeDecoder
from .speculative.profile import profile_step

PROMPTS = 5
NEW_TOKENS = 100


def quickstart(
    out_dir: str | Path,
    layers: int = 8,
    data: str | Path | Sequence[str | Path] | None = None,
    teacher: str = "smollm2-135m",
    window: int = 4,
    seed: int = 0,
    align_tokens: int | None = None,
    distill_tokens: int | None = None,
    console: Console | None = None,
) -> list[ModelRow]:
    """Run everything, print the table, write results.json and quickstart.png to `out_dir`; returns the table's rows.

    Args:
        layers: how many attention layers become Mamba-2: those whose deletion changes the output least.
        data: text files or folders; default Python's own standard-library sources.
        teacher: "smollm2-135m", a Llama folder or a hub id.
        window: tokens per verify step when decoding speculatively.
        align_tokens, distill_tokens: how much the two training stages train on; default their own.
    """
    run = _Run(Path(out_dir), console or Console())
    settings = {
        "layers": layers,
        "data": _as_text(data),
        "teacher": str(teacher),
        "seed": seed,
        "align_tokens": align_tokens,
        "distill_tokens": distill_tokens,
        "version": __version__,
    }
    run.check_settings(settings)
    folder = {name: run.dir / name for name in ("teacher", "converted", "aligned", "hybrid")}

    run.folder("teacher", folder["teacher"], fetch_teacher, teacher, folder["teacher"])
    ranking = run.value("rank layers", rank_layers, folder["teacher"], data, seed=seed)
    chosen = Ranking(**ranking).least_important(layers)
    run.console.print(f"converting layers {', '.join(map(str, chosen))} of {len(ranking['order'])}")
    run.folder("convert", folder["converted"], convert, folder["teacher"], folder["converted"], chosen, data, seed=seed)
    for name, train, tokens, source, target in (
        ("align", align, align_tokens, folder["converted"], folder["aligned"]),
        ("distill", distill, distill_tokens, folder["aligned"], folder["hybrid"]),
    ):
        budget = {} if tokens is None else {"tokens": tokens}
        run.folder(name, target, train, source, folder["teacher"], target, data, seed=seed, **budget)

    rows = []
    for name, source in (
        ("teacher", "teacher"),
        ("deleted", "teacher"),
        ("converted", "converted"),
        ("aligned", "aligned"),
        ("distilled", "hybrid"),
    ):
        deleted = chosen if name == "deleted" else ()
        scores = run.value(f"evaluate {name}", evaluate, folder[source], data, deleted)
        rows.append(ModelRow(name, scores["perplexity"], scores["bits_per_byte"]))

    shares = {}
    for row, source in ((rows[0], "teacher"), (rows[-1], "hybrid")):
        decoded = run.value(f"decode with {row.name}, window {window}", _decode, folder[source], data, window)
        plain, speculative = decoded["rows"]
        row.plain_tokens_per_second = plain["tokens_per_second"]
        row.speculative_tokens_per_second = speculative["tokens_per_second"]
        row.acceptance_length = speculative["acceptance_length"]
        row.identical = speculative["identical"]
        shares |= {f"{row.name}\n{name}": parts for name, parts in decoded["step"].items()}

    losses = {
        stage: _losses(folder[name] / "metrics.jsonl") for stage, name in (("align", "aligned"), ("distill", "hybrid"))
    }
    results_plot(run.dir / "quickstart.png", losses, shares)
    run.finish({**settings, "window": window, "converted_layers": chosen, "rows": [asdict(row) for row in rows]})
    run.console.print(results_table(rows, window))
    run.console.print(f"seconds: {run.summary()}", soft_wrap=True)
    run.console.print(
        f"model {folder['hybrid']}   plot {run.dir / 'quickstart.png'}   figures {run.dir / 'results.json'}",
        soft_wrap=True,
    )
    return rows


def _decode(folder: Path, data, window: int) -> dict:
    """Greedy decoding of held-out text, plain and speculative, and where a step's time goes in each."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = held_out_prompts(tokenizer, data, PROMPTS)
    step = {}
    for name, size in (("plain", 1), ("speculative", window)):
        decoder = SpeculativeDecoder(model, window=size, max_tokens=len(prompts[0]) + NEW_TOKENS)
        step[name] = profile_step(decoder, prompts[0], 32)
    return {"rows": decode_bench(model, prompts, [1, window], NEW_TOKENS), "step": step}


def _losses(metrics: Path) -> list[tuple[int, float]]:
    """(tokens, loss) of a training run, averaged to at most some fifty points: single steps are mostly noise."""
    lines = read_metrics(metrics)
    size = max(1, len(lines) // 50)
    groups = [lines[i : i + size] for i in range(0, len(lines), size)]
    return [(group[-1]["tokens"], sum(line["loss"] for line in group) / len(group)) for group in groups]


def _as_text(data) -> list[str] | None:
    if data is None:
        return None
    return [str(data)] if isinstance(data, (str, Path)) else [str(path) for path in data]


class _Run:
    """The stages of one run and what they took; finished stages are remembered in progress.json."""

    def __init__(self, folder: Path, console: Console):
        self.dir, self.console = folder, console
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "progress.json"
        self.state = (
            json.loads(self.file.read_text()) if self.file.exists() else {"settings": None, "values": {}, "seconds": {}}
        )

    def check_settings(self, settings: dict) -> None:
        """Stages of different settings do not mix."""
        known = self.state["settings"]
        if known not in (None, settings):
            changed = next(name for name in settings if settings[name] != known[name])
            raise ValueError(
                f"quickstart: {changed} must be {known[changed]} to go on with {self.dir} (or choose another --out); "
                f"got {settings[changed]}"
            )
        self.state["settings"] = settings
        self._save()

    def folder(self, stage: str, folder: Path, work: Callable, *args, **options) -> None:
        """Run a stage unless the folder that it writes as its last act is there."""
        if not folder.exists():
            self._timed(stage, work, *args, **options)
        elif not any(folder.glob("*.safetensors")):
            raise ValueError(
                f"quickstart: {folder} must hold the model that its stage left there (delete {self.dir} to start over, "
                "or choose another --out); got no weights"
            )

    def value(self, stage: str, work: Callable, *args, **options) -> dict:
        """The result of a stage as a dict, remembered from an earlier run if there was one."""
        if stage not in self.state["values"]:
            result = self._timed(stage, work, *args, **options)
            self.state["values"][stage] = asdict(result) if is_dataclass(result) else result
            self._save()
        return self.state["values"][stage]

    def _timed(self, stage: str, work: Callable, *args, **options):
        self.console.rule(f"[bold]{stage}", align="left")
        start = time.perf_counter()
        result = work(*args, **options)
        self.state["seconds"][stage] = round(time.perf_counter() - start, 1)
        self._save()
        return result

    def _save(self) -> None:
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state))
        temporary.replace(self.file)

    def finish(self, results: dict) -> None:
        text = json.dumps({**results, "seconds": self.state["seconds"], "environment": describe()}, indent=1)
        (self.dir / "results.json").write_text(text + "\n")

    def summary(self) -> str:
        seconds = self.state["seconds"]
        return (
            ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items())
            + f"; total {sum(seconds.values()):.0f}"
        )
