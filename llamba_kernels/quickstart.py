"""The whole line in one call: teacher -> ranking -> conversion -> alignment -> distillation -> evaluation -> decoding.

Every stage writes its folder or file into `out_dir` when it is complete, so a run that was interrupted goes on where it
stopped; tune, align and distill also keep checkpoints within.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from torch import Tensor

from . import __version__
from .agreement import common_prefix, same_next_token
from .decode_bench import decode_bench, held_out_prompts
from .distill import align, convert, distill, fetch_teacher, rank_layers, tune
from .distill.evaluate import evaluate_windows
from .distill.folders import locked, saving, write_file
from .distill.rank import Ranking
from .distill.text import check_apart, read_text, token_windows, untrained_text
from .distill.training import read_metrics
from .env import describe
from .models import load_model, load_tokenizer
from .report import ModelRow, notes, results_plot, results_table
from .speculative import SpeculativeDecoder
from .speculative.profile import profile_step

# Two seeds of everything fit fifteen minutes on two cores with these; the stages' own defaults are larger.
ALIGN_TOKENS = 28_672
DISTILL_TOKENS = 24_576
# The tuned teacher has learnt the text with all its parameters: so may the student, while it learns from the teacher.
DISTILL_OPTIONS = {"ce_weight": 1.0, "rest_lr": 1e-4}
SCORED_TOKENS = 8_192  # of each of the two texts
WINDOW = 512
PROMPTS = 10
NEW_TOKENS = 64


def quickstart(
    out_dir: str | Path,
    layers: int = 8,
    data: str | Path | Sequence[str | Path] | None = None,
    teacher: str = "smollm2-135m",
    window: int = 4,
    seed: int = 0,
    seeds: int = 2,
    align_tokens: int = ALIGN_TOKENS,
    distill_tokens: int = DISTILL_TOKENS,
    other_data: str | Path | Sequence[str | Path] | None = None,
    console: Console | None = None,
) -> list[ModelRow]:
    """Run everything, print the table, write results.json and quickstart.png to `out_dir`; returns the table's rows.

    Args:
        layers: how many attention layers become Mamba-2: those whose deletion changes the output least.
        data: text files or folders; default Python's own standard-library sources.
        teacher: "smollm2-135m", a Llama folder or a hub id.
        window: tokens per verify step when decoding speculatively.
        seed, seeds: the first seed and how many, one after the other. A seed decides the mixers' start, the windows
            and their order; the layers are chosen once, with the first. Folders of the others are named after them.
        align_tokens, distill_tokens: how much the two training stages train on; `tune` trains on all of it.
        other_data: text of a domain not trained on; default `distill.text.untrained_text`'s.
    """
    if seeds < 1:
        raise ValueError(f"quickstart: seeds must be at least 1; got {seeds}")
    check_apart("quickstart", data, other_data)
    plan = _Plan(
        layers, _as_text(data), str(teacher), window, seed, seeds, align_tokens, distill_tokens, _as_text(other_data)
    )
    with locked("quickstart", Path(out_dir), out_dir):
        run = _Run(Path(out_dir), console or Console())
        run.check_settings(plan.settings())
        source, chosen = _choose_layers(run, plan)
        folders = {number: _train(run, plan, number, source, chosen) for number in plan.numbers}
        rows, models = _list_models(plan, source, folders)
        scored = _Scored(source, plan)
        texts = run.value("greedy text of the teacher", _greedy_texts, source, scored)["texts"]
        for row, model in zip(rows, models, strict=True):
            deleted = chosen if row.name == "deleted" else ()
            row.add(run.value(f"evaluate {row.label}", _score, model, scored, deleted, texts))
        shares = _measure_decoding(run, plan, rows, models, scored, texts)
        _plot(run, plan, folders, shares)
        _report(run, plan, folders, chosen, rows)
    return rows


@dataclass(frozen=True)
class _Plan:
    """What was asked for; `quickstart` describes it."""

    layers: int
    data: list[str] | None
    teacher: str
    window: int
    seed: int
    seeds: int
    align_tokens: int
    distill_tokens: int
    other_data: list[str] | None

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.seed, self.seed + self.seeds)

    def settings(self) -> dict:
        """What a run cannot change and go on; more seeds and another window it can."""
        names = ("layers", "data", "other_data", "teacher", "seed", "align_tokens", "distill_tokens")
        return {**{name: getattr(self, name) for name in names}, **DISTILL_OPTIONS, "version": __version__}


def _choose_layers(run: "_Run", plan: _Plan) -> tuple[Path, list[int]]:
    """The teacher's folder, and which of its layers are converted."""
    source = run.dir / "teacher"
    run.folder("teacher", source, fetch_teacher, plan.teacher, source)
    ranking = run.value("rank layers", rank_layers, source, plan.data, seed=plan.seed)
    chosen = Ranking(**ranking).least_important(plan.layers)
    run.console.print(f"converting layers {', '.join(map(str, chosen))} of {len(ranking['order'])}")
    return source, chosen


def _train(run: "_Run", plan: _Plan, number: int, source: Path, chosen: list[int]) -> dict[str, Path]:
    """Convert, align, distill and tune with one seed; the folders, by name."""
    at = _folders(run.dir, number, plan.seed)

    def stage(command: str, work: Callable, out: Path, *inputs, **options):
        run.folder(f"{command} seed {number}", out, work, *inputs, data=plan.data, seed=number, **options)

    stage("convert", convert, at["converted"], source, at["converted"], chosen)
    stage("align", align, at["aligned"], at["converted"], source, at["aligned"], tokens=plan.align_tokens)
    options = {"tokens": plan.distill_tokens, **DISTILL_OPTIONS}
    stage("distill", distill, at["hybrid"], at["aligned"], source, at["hybrid"], **options)
    budget = {"align_tokens": plan.align_tokens, "distill_tokens": plan.distill_tokens}
    stage("tune", tune, at["tuned"], source, at["tuned"], **budget)
    return at


def _list_models(plan: _Plan, source: Path, folders: dict[int, dict[str, Path]]) -> tuple[list[ModelRow], list[Path]]:
    """The table's rows, not measured yet, and the folder of each."""
    rows, models = [ModelRow("teacher"), ModelRow("deleted")], [source, source]
    for name, folder in (
        ("tuned", "tuned"),
        ("converted", "converted"),
        ("aligned", "aligned"),
        ("distilled", "hybrid"),
    ):
        rows += [ModelRow(name, number) for number in plan.numbers]
        models += [folders[number][folder] for number in plan.numbers]
    return rows, models


def _measure_decoding(
    run: "_Run", plan: _Plan, rows: list[ModelRow], models: list[Path], scored: "_Scored", texts: list[list[int]]
) -> dict:
    """Speeds and greedy texts into the rows that have some; where a step's time goes, for the plot."""
    shares = {}
    for row, model in zip(rows, models, strict=True):
        if row.name == "tuned":
            own = run.value(f"greedy text of {row.label}", _greedy_texts, model, scored)["texts"]
            row.common_prefix = common_prefix(texts, own)
        elif row.name in ("teacher", "distilled"):
            decoded = run.value(f"decode with {row.label}, window {plan.window}", _decode, model, scored)
            row.common_prefix = common_prefix(texts, decoded["texts"])
            row.add_speeds(*decoded["rows"])
            if row.seed in (None, plan.seed):
                shares |= {f"{row.name}\n{name}": parts for name, parts in decoded["step"].items()}
    return shares


def _plot(run: "_Run", plan: _Plan, folders: dict[int, dict[str, Path]], shares: dict):
    losses = {
        stage: {f"seed {number}": _losses(folders[number][name] / "metrics.jsonl") for number in plan.numbers}
        for stage, name in (("tune", "tuned"), ("align", "aligned"), ("distill", "hybrid"))
    }
    with saving("quickstart", run.dir / "quickstart.png"):
        results_plot(run.dir / "quickstart.png", losses, shares)


def _report(run: "_Run", plan: _Plan, folders: dict[int, dict[str, Path]], chosen: list[int], rows: list[ModelRow]):
    """Write results.json; print the table."""
    results = {**plan.settings(), "seeds": plan.seeds, "window": plan.window, "converted_layers": chosen}
    run.finish({**results, "new_tokens": NEW_TOKENS, "prompts": PROMPTS, "rows": [asdict(row) for row in rows]})
    run.console.print(results_table(rows, plan.window))
    hybrid, plot, figures = folders[plan.seed]["hybrid"], run.dir / "quickstart.png", run.dir / "results.json"
    for line in (
        notes(rows, PROMPTS, NEW_TOKENS),
        f"seconds: {run.summary()}",
        f"model {hybrid}   plot {plot}   figures {figures}",
    ):
        run.console.print(line, soft_wrap=True)


def _folders(run_dir: Path, number: int, first: int) -> dict[str, Path]:
    """The first seed's folders have the plain names."""
    suffix = "" if number == first else f"-seed{number}"
    return {name: run_dir / f"{name}{suffix}" for name in ("tuned", "converted", "aligned", "hybrid")}


class _Scored:
    """What every model is scored on, read when first needed: windows of both texts, and prompts of the held-out one."""

    def __init__(self, teacher: Path, plan: _Plan):
        self.teacher, self.data, self.other_data, self.window = teacher, plan.data, plan.other_data, plan.window

    @cached_property
    def tokenizer(self):
        return load_tokenizer(self.teacher)

    @cached_property
    def windows(self) -> Tensor:
        return self._windows(read_text(self.data).held_out)

    @cached_property
    def other_windows(self) -> Tensor:
        return self._windows(untrained_text(self.other_data))

    @cached_property
    def prompts(self) -> list[list[int]]:
        return held_out_prompts(self.tokenizer, self.data, PROMPTS)

    def _windows(self, chunks: list[str]) -> Tensor:
        return token_windows(self.tokenizer, chunks, WINDOW, SCORED_TOKENS // WINDOW)


def _score(folder: Path, scored: _Scored, deleted, texts: list[list[int]]) -> dict[str, float]:
    """What a row of the table says of a model's quality."""
    model = load_model(folder)
    held_out = evaluate_windows(model, scored.tokenizer, scored.windows, deleted)
    other = evaluate_windows(model, scored.tokenizer, scored.other_windows, deleted)
    return {
        "perplexity": held_out.perplexity,
        "bits_per_byte": held_out.bits_per_byte,
        "other_perplexity": other.perplexity,
        "other_bits_per_byte": other.bits_per_byte,
        "same_next_token": same_next_token(model, scored.prompts, texts, deleted),
    }


def _greedy_texts(folder: Path, scored: _Scored) -> dict:
    """The model's greedy text after held-out prompts. It is the same for any window."""
    model, prompts = load_model(folder), scored.prompts
    decoder = SpeculativeDecoder(model, window=scored.window, max_tokens=len(prompts[0]) + NEW_TOKENS)
    return {"texts": [decoder.generate(prompt, NEW_TOKENS, eos_token_id=-1).tokens for prompt in prompts]}


def _decode(folder: Path, scored: _Scored) -> dict:
    """Greedy decoding of held-out text, plain and speculative, and where a step's time goes in each."""
    model, prompts = load_model(folder), scored.prompts
    step = {}
    for name, size in (("plain", 1), ("speculative", scored.window)):
        decoder = SpeculativeDecoder(model, window=size, max_tokens=len(prompts[0]) + NEW_TOKENS)
        step[name] = profile_step(decoder, prompts[0], 32)
    rows, texts = decode_bench(model, prompts, [1, scored.window], NEW_TOKENS)
    return {"rows": rows, "texts": texts, "step": step}


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
        self.file = folder / "progress.json"
        self.state = (
            json.loads(self.file.read_text()) if self.file.exists() else {"settings": None, "values": {}, "seconds": {}}
        )

    def check_settings(self, settings: dict) -> None:
        """Stages of different settings do not mix."""
        known = self.state["settings"] or settings
        changed = next((name for name in settings if known.get(name) != settings[name]), None)
        if changed is not None:
            raise ValueError(
                f"quickstart: {changed} must be {known.get(changed)} to go on with {self.dir} (or choose another "
                f"--out); got {settings[changed]}"
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
        try:
            result = work(*args, **options)
        except BaseException:
            self._count(stage, start)
            with suppress(OSError):  # why the stage failed matters more
                self._save()
            raise
        self._count(stage, start)
        self._save()
        return result

    def _count(self, stage: str, start: float) -> None:
        """Seconds since `start`, added to those of parts that were interrupted."""
        seconds = self.state["seconds"]
        seconds[stage] = round(seconds.get(stage, 0.0) + time.perf_counter() - start, 1)

    def _save(self) -> None:
        write_file("quickstart", self.file, json.dumps(self.state))

    def finish(self, results: dict) -> None:
        text = json.dumps({**results, "seconds": self.state["seconds"], "environment": describe()}, indent=1)
        write_file("quickstart", self.dir / "results.json", text + "\n")

    def summary(self) -> str:
        """Seconds by kind of stage, which is the first word of its name."""
        kinds = Counter()
        for stage, seconds in self.state["seconds"].items():
            kinds[stage.split()[0]] += seconds
        return ", ".join(f"{kind} {seconds:.0f}" for kind, seconds in kinds.items()) + f"; total {kinds.total():.0f}"
