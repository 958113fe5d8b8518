"""The whole line in one call: teacher -> ranking -> conversion -> alignment -> distillation -> evaluation -> decoding.

Every stage writes its folder or file into `out_dir` when it is complete, so a run that was interrupted goes on where it
stopped; tune, align and distill also keep checkpoints within.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from torch import Tensor

from . import __version__
from .agreement import common_prefix, same_next_token
from .decode_bench import decode_bench, held_out_prompts
from .distill import align, convert, distill, fetch_teacher, rank_layers, tune
from .distill.evaluate import evaluate_windows
from .distill.folders import saving, write_file
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
    run = _Run(Path(out_dir), console or Console())
    settings = {
        "layers": layers,
        "data": _as_text(data),
        "other_data": _as_text(other_data),
        "teacher": str(teacher),
        "seed": seed,
        "align_tokens": align_tokens,
        "distill_tokens": distill_tokens,
        **DISTILL_OPTIONS,
        "version": __version__,
    }
    run.check_settings(settings)

    source = run.dir / "teacher"
    run.folder("teacher", source, fetch_teacher, teacher, source)
    ranking = run.value("rank layers", rank_layers, source, data, seed=seed)
    chosen = Ranking(**ranking).least_important(layers)
    run.console.print(f"converting layers {', '.join(map(str, chosen))} of {len(ranking['order'])}")
    numbers = range(seed, seed + seeds)
    folders = {}
    for number in numbers:
        at = folders[number] = _folders(run.dir, number, seed)
        of = f" seed {number}"
        common = {"data": data, "seed": number}
        run.folder(f"convert{of}", at["converted"], convert, source, at["converted"], chosen, **common)
        run.folder(
            f"align{of}", at["aligned"], align, at["converted"], source, at["aligned"], tokens=align_tokens, **common
        )
        run.folder(
            f"distill{of}",
            at["hybrid"],
            distill,
            at["aligned"],
            source,
            at["hybrid"],
            tokens=distill_tokens,
            **DISTILL_OPTIONS,
            **common,
        )
        budget = {"align_tokens": align_tokens, "distill_tokens": distill_tokens}
        run.folder(f"tune{of}", at["tuned"], tune, source, at["tuned"], **budget, **common)

    scored = _Scored(source, data, other_data)
    texts = run.value("greedy text of the teacher", _greedy_texts, source, scored, window)["texts"]
    rows = [ModelRow("teacher"), ModelRow("deleted")]
    names = {"tuned": "tuned", "converted": "converted", "aligned": "aligned", "distilled": "hybrid"}
    sources = [source, source]
    for name, folder in names.items():
        rows += [ModelRow(name, number) for number in numbers]
        sources += [folders[number][folder] for number in numbers]
    for row, folder in zip(rows, sources, strict=True):
        deleted = chosen if row.name == "deleted" else ()
        row.add(run.value(f"evaluate {row.label}", _score, folder, scored, deleted, texts))

    shares = {}
    for row, folder in zip(rows, sources, strict=True):
        if row.name == "tuned":
            own = run.value(f"greedy text of {row.label}", _greedy_texts, folder, scored, window)["texts"]
            row.common_prefix = common_prefix(texts, own)
        elif row.name in ("teacher", "distilled"):
            decoded = run.value(f"decode with {row.label}, window {window}", _decode, folder, scored, window)
            row.common_prefix = common_prefix(texts, decoded["texts"])
            row.add_speeds(*decoded["rows"])
            if row.seed in (None, seed):
                shares |= {f"{row.name}\n{name}": parts for name, parts in decoded["step"].items()}

    losses = {
        stage: {f"seed {number}": _losses(folders[number][name] / "metrics.jsonl") for number in numbers}
        for stage, name in (("tune", "tuned"), ("align", "aligned"), ("distill", "hybrid"))
    }
    with saving("quickstart", run.dir / "quickstart.png"):
        results_plot(run.dir / "quickstart.png", losses, shares)
    results = {**settings, "seeds": seeds, "window": window, "converted_layers": chosen}
    run.finish({**results, "new_tokens": NEW_TOKENS, "prompts": PROMPTS, "rows": [asdict(row) for row in rows]})
    run.console.print(results_table(rows, window))
    run.console.print(notes(rows, PROMPTS, NEW_TOKENS), soft_wrap=True)
    run.console.print(f"seconds: {run.summary()}", soft_wrap=True)
    run.console.print(
        f"model {folders[seed]['hybrid']}   plot {run.dir / 'quickstart.png'}   figures {run.dir / 'results.json'}",
        soft_wrap=True,
    )
    return rows


def _folders(run_dir: Path, number: int, first: int) -> dict[str, Path]:
    """The first seed's folders have the plain names."""
    suffix = "" if number == first else f"-seed{number}"
    return {name: run_dir / f"{name}{suffix}" for name in ("tuned", "converted", "aligned", "hybrid")}


class _Scored:
    """What every model is scored on, read when first needed: windows of both texts, and prompts of the held-out one."""

    def __init__(self, teacher: Path, data, other_data):
        self.teacher, self.data, self.other_data = teacher, data, other_data

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


def _greedy_texts(folder: Path, scored: _Scored, window: int) -> dict:
    """The model's greedy text after held-out prompts. It is the same for any window."""
    model, prompts = load_model(folder), scored.prompts
    decoder = SpeculativeDecoder(model, window=window, max_tokens=len(prompts[0]) + NEW_TOKENS)
    return {"texts": [decoder.generate(prompt, NEW_TOKENS, eos_token_id=-1).tokens for prompt in prompts]}


def _decode(folder: Path, scored: _Scored, window: int) -> dict:
    """Greedy decoding of held-out text, plain and speculative, and where a step's time goes in each."""
    model, prompts = load_model(folder), scored.prompts
    step = {}
    for name, size in (("plain", 1), ("speculative", window)):
        decoder = SpeculativeDecoder(model, window=size, max_tokens=len(prompts[0]) + NEW_TOKENS)
        step[name] = profile_step(decoder, prompts[0], 32)
    rows, texts = decode_bench(model, prompts, [1, window], NEW_TOKENS)
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
