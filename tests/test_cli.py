"""The command line: quickstart end to end on a tiny teacher, every command on its results, and errors of one line."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_teacher
from transformers import AutoModelForCausalLM

from llamba_kernels import cli, fold
from llamba_kernels.distill import training
from llamba_kernels.distill.evaluate import evaluate_windows
from llamba_kernels.distill.text import token_windows, untrained_text
from llamba_kernels.models import load_model, load_tokenizer

STAGES = ("teacher", "tuned", "converted", "aligned", "hybrid")
NAMES = ("tuned", "converted", "aligned", "distilled")
ROWS = [("teacher", None), ("deleted", None), *((name, seed) for name in NAMES for seed in (0, 1))]


def llamba(*arguments):
    """The command in this process, which has paid for the imports already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch.object(sys, "argv", ["llamba", *map(str, arguments)]),
    ):
        try:
            cli.run()
        except SystemExit as exit:
            code = exit.code or 0
        finally:
            cli.run.verbose = False
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def quickstart_arguments(root, layers=2, out="run"):
    return (
        "quickstart",
        "--out",
        root / out,
        "--teacher",
        root / "llama",
        "--data",
        root / "text.txt",
        "--layers",
        layers,
        "--align-tokens",
        2048,
        "--distill-tokens",
        1024,
    )


def test_quickstart_ends_with_a_table_a_plot_and_figures(run_dir):
    results = json.loads((run_dir / "run/results.json").read_text())
    rows = {(row["name"], row["seed"]): row for row in results["rows"]}
    assert list(rows) == ROWS
    teacher = rows["teacher", None]
    assert teacher["same_next_token"] == 1.0 and teacher["common_prefix"] == results["new_tokens"]
    text = (run_dir / "stdout.txt").read_text()
    table = text[text.index("perplexity") :].splitlines()
    for (name, seed), row in rows.items():
        if name in ("teacher", "distilled"):
            assert row["identical"] is True
            assert 1 <= row["acceptance_length"] <= results["window"]
        if name in ("teacher", "tuned", "distilled"):
            assert 0 <= row["common_prefix"] <= results["new_tokens"]
        label = name if seed is None else f"{name} seed {seed}"
        cells = next(line for line in table if line.strip().startswith(label)).removeprefix(f" {label}").split()
        expected = []
        for field in ("perplexity", "other_perplexity"):
            expected += [f"{row[field]:.3f}", f"{row[field] / teacher[field]:.3f}"]
        assert cells[:5] == [*expected, f"{100 * row['same_next_token']:.1f}%"]
    assert len(results["converted_layers"]) == 2 and results["environment"]
    assert (run_dir / "run/quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_every_stage_is_an_ordinary_hugging_face_folder(run_dir):
    for stage in STAGES:
        model = AutoModelForCausalLM.from_pretrained(run_dir / "run" / stage)
        kinds = getattr(model.config, "layers", ["attention"] * 4)
        assert kinds.count("mamba2") == (0 if stage in ("teacher", "tuned") else 2)
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_quickstart_again_repeats_nothing_and_says_the_same(run_dir):
    before = {path: path.stat().st_mtime_ns for path in (run_dir / "run").rglob("*.safetensors")}
    again = llamba(*quickstart_arguments(run_dir))
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in (run_dir / "run").rglob("*.safetensors")} == before
    first = (run_dir / "stdout.txt").read_text()
    assert again.stdout[again.stdout.index("perplexity") :] == first[first.index("perplexity") :]


@pytest.fixture
def heeds_sigint():
    """A shell's background jobs, and what they start, ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_sigint")
def test_ctrl_c_says_in_one_line_that_the_same_command_goes_on_and_it_does(run_dir, monkeypatch):
    arguments = *quickstart_arguments(run_dir, out="interrupted"), "--seeds", 1

    def press(stage, step):
        class Press(training.Metrics):
            def on_step_end(self, args, state, control, **kwargs):
                if (self.command, state.global_step) == (stage, step):
                    os.kill(os.getpid(), signal.SIGINT)

        return Press

    sentence = "llamba: interrupted; the same command goes on from its last checkpoint"
    for stage, step in (("align", 2), ("distill", 1), ("tune", 5)):
        with monkeypatch.context() as patch:
            patch.setattr(training, "Metrics", press(stage, step))
            stopped = llamba(*arguments)
        assert stopped.returncode == 130 and stopped.stderr.strip().splitlines()[-1] == sentence
        assert f"{stage} seed 0 ──" in stopped.stdout and "Traceback" not in stopped.stderr
    done = llamba(*arguments)
    assert done.returncode == 0, done.stderr
    assert "tune seed 0 ──" in done.stdout and "distill seed 0 ──" not in done.stdout

    rows = json.loads((run_dir / "interrupted/results.json").read_text())["rows"]
    whole = {(row["name"], row["seed"]): row for row in json.loads((run_dir / "run/results.json").read_text())["rows"]}
    assert [(row["name"], row["seed"]) for row in rows] == [row for row in ROWS if row[1] in (None, 0)]
    for row in rows:
        for field in ("perplexity", "other_perplexity", "same_next_token", "common_prefix"):
            assert row[field] == whole[row["name"], row["seed"]][field]


def test_quickstart_takes_another_seed_later(run_dir):
    """After the test above, whose run has one seed."""
    arguments = quickstart_arguments(run_dir, out="interrupted")
    more = llamba(*arguments)
    assert more.returncode == 0, more.stderr
    assert "tune seed 1 ──" in more.stdout and "seed 0 ──" not in more.stdout
    for stage in STAGES[1:]:
        weights = [load_file(run_dir / out / f"{stage}-seed1" / "model.safetensors") for out in ("run", "interrupted")]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
        first = load_file(run_dir / "run" / stage / "model.safetensors")
        assert not all(torch.equal(value, first[name]) for name, value in weights[0].items())


def test_quickstart_with_another_window_measures_again(run_dir):
    other = llamba(*quickstart_arguments(run_dir), "--window", 2)
    assert other.returncode == 0 and "decode with distilled seed 1, window 2" in other.stdout
    stages = other.stdout.split("seconds:")[0]
    assert "align ──" not in stages and "evaluate" not in stages
    results = json.loads((run_dir / "run/results.json").read_text())
    assert results["window"] == 2 and all(
        row["acceptance_length"] <= 2 for row in results["rows"] if row["identical"] is not None
    )


def test_quickstart_does_not_mix_settings(run_dir):
    other = llamba(*quickstart_arguments(run_dir, layers=1))
    assert other.returncode == 1
    assert other.stderr.strip().endswith("(or choose another --out); got 1") and "layers must be 2" in other.stderr


def test_quickstart_does_not_report_a_stage_that_lost_its_weights(run_dir):
    weights = run_dir / "run/aligned/model.safetensors"
    moved = weights.rename(run_dir / "moved.safetensors")
    failed = llamba(*quickstart_arguments(run_dir))
    moved.rename(weights)
    assert failed.returncode == 1 and failed.stderr.strip().endswith("; got no weights")


def test_generate_says_the_same_for_every_window(run_dir):
    texts = [
        llamba("generate", run_dir / "run/hybrid", "the state of a", "--max-new-tokens", 24, "--window", window)
        for window in (1, 5)
    ]
    assert all(text.returncode == 0 for text in texts), texts[0].stderr
    assert texts[0].stdout == texts[1].stdout and len(texts[0].stdout) > 10
    assert "24 tokens" in texts[1].stderr and "tokens per step" in texts[1].stderr


def test_generate_says_the_same_for_every_draft(run_dir):
    """lookup is the default; the last is a model of its own, with the same tokenizer."""
    texts = [
        llamba("generate", run_dir / "run/hybrid", "the state of a", "--max-new-tokens", 24, "--draft", draft)
        for draft in ("lookup", "none", "first:1", "first:4", run_dir / "run/converted")
    ]
    assert all(text.returncode == 0 for text in texts), texts[0].stderr
    assert len({text.stdout for text in texts}) == 1 and len(texts[0].stdout) > 10
    assert "1.00 tokens per step" in texts[1].stderr and "4.00 tokens per step" not in texts[2].stderr
    assert "3.83 tokens per step" in texts[3].stderr  # all its layers: 23 tokens in 6 steps of at most 4


def test_generate_samples(run_dir):
    """A top-k of one token is greedy; another seed gives another text."""
    options = ("generate", run_dir / "run/hybrid", "the state of a", "--max-new-tokens", 24)
    greedy, one, *sampled = (
        llamba(*options, *more).stdout
        for more in (
            (),
            ("--temperature", 2, "--top-k", 1),
            ("--temperature", 2, "--top-p", 0.9),
            ("--temperature", 2, "--top-p", 0.9),
            ("--temperature", 2, "--top-p", 0.9, "--seed", 1),
        )
    )
    assert greedy == one != sampled[0] == sampled[1] != sampled[2]


def test_a_draft_with_another_tokenizer_is_refused(run_dir):
    other = run_dir / "other"
    write_teacher(other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = (next(token for token, i in vocabulary.items() if i == id_) for id_ in (70, 90))
    vocabulary[a], vocabulary[b] = 90, 70
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    hybrid = run_dir / "run/hybrid"
    refused = llamba("generate", hybrid, "the state", "--draft", other)
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr == (
        f"llamba: draft: {other} must have the tokenizer of {hybrid}; got one where id 70 is {b!r} instead of {a!r}\n"
    )


def test_the_readme_s_use_of_the_decoder(run_dir, capsys):
    """As it is written there, on the folders here: two texts, three results."""
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    use, names = readme.split("\n## Use\n")[1].split("\n## ")[0], {}
    for block in re.findall(r"```python\n(.*?)```", use, flags=re.DOTALL):
        block = block.replace("runs/quickstart/", f"{run_dir}/run/").replace(
            "path/to/a/smaller/model", f"{run_dir}/llama"
        )
        exec(block, names)
    assert names["decoder"].stats.sequences == 3 and "length" in capsys.readouterr().out


def test_tune_is_the_stage_that_quickstart_runs(run_dir, tmp_path):
    arguments = "--data", run_dir / "text.txt", "--align-tokens", 2048, "--distill-tokens", 1024, "--seed", 1
    done = llamba("tune", run_dir / "run/teacher", tmp_path / "tuned", *arguments)
    assert done.returncode == 0 and "over the last tenth of 3072 tokens" in done.stdout
    mine, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "tuned", run_dir / "run/tuned-seed1"))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_rank_eval_bench_and_env(run_dir, tmp_path):
    ranking = llamba("rank-layers", run_dir / "llama", "--data", run_dir / "text.txt")
    assert ranking.returncode == 0 and "KL after deletion" in ranking.stdout
    scores = llamba("eval", run_dir / "run/hybrid", "--teacher", run_dir / "llama", "--data", run_dir / "text.txt")
    assert scores.returncode == 0 and "layers deleted" in scores.stdout
    other = llamba("eval", run_dir / "run/hybrid", "--untrained")
    tokenizer, model = load_tokenizer(run_dir / "run/hybrid"), load_model(run_dir / "run/hybrid")
    expected = evaluate_windows(model, tokenizer, token_windows(tokenizer, untrained_text(), 512, 24)).perplexity
    assert other.returncode == 0 and f"{expected:.3f}" in other.stdout
    bench = llamba(
        "bench",
        run_dir / "run/hybrid",
        "--windows",
        "1,3",
        "--draft",
        "first:2",
        "--prompts",
        2,
        "--max-new-tokens",
        8,
        "--data",
        run_dir / "text.txt",
        "--json",
        tmp_path / "bench.json",
    )
    assert bench.returncode == 0, bench.stderr
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["window"] for row in rows] == [1, 3] and all(row["identical"] for row in rows)
    env = llamba("env")
    assert env.returncode == 0 and torch.__version__ in env.stdout and fold.describe() in env.stdout


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ("generate", "no/such/folder", "x"),
            "llamba: load_model: path_or_id must be a folder or a hub id owner/name; got no/such/folder",
        ),
        (
            ("convert", "{root}/llama", "{root}/run/hybrid", "--layers", "1"),
            "llamba: convert: out_dir must not exist yet, nothing is overwritten; got {root}/run/hybrid",
        ),
        (
            ("convert", "{root}/llama", "{root}/new"),
            "llamba: convert: exactly one of --layers and --count must be given; got None and None",
        ),
        (
            ("convert", "{root}/llama", "{root}/new", "--layers", "1,x"),
            "llamba: convert: layers must be numbers such as 1,2,4; got 1,x",
        ),
        (
            ("generate", "{root}/llama", "x", "--dtype", "float8"),
            "llamba: dtype must be float32 or bfloat16; got float8",
        ),
        (
            ("generate", "{root}/llama", "x", "--draft", "first:5"),
            "llamba: first_layers: count must be 1 to 4; got 5",
        ),
        (
            ("generate", "{root}/llama", "x", "--draft", "first:two"),
            "llamba: draft: first:N must have a number of layers as N; got first:two",
        ),
        (
            ("generate", "{root}/llama", "x", "--temperature", "1", "--top-p", "1.5"),
            "llamba: Sampling: top_p must be a number from 0 to 1; got 1.5",
        ),
        (
            ("bench", "no/model", "--json", "{root}/none/bench.json"),
            "llamba: bench: {root}/none/bench.json must be a file that can be written; got No such file or directory",
        ),
        (
            ("bench", "no/model", "--json", "{root}"),
            "llamba: bench: {root} must be a file that can be written; got Is a directory",
        ),
        (
            ("bench", "{root}/llama", "--draft", "nowhere"),
            "llamba: draft: name must be lookup, none, first:N, a model's folder or a hub id owner/name; got 'nowhere'",
        ),
        (("quickstart", "--out", "{root}/other", "--data", "{root}/none.txt", "--teacher", "{root}/llama"), None),
    ],
)
def test_errors_are_one_line(run_dir, arguments, sentence):
    failed = llamba(*(argument.format(root=run_dir) for argument in arguments))
    assert failed.returncode == 1
    lines = failed.stderr.strip().splitlines()
    if sentence is not None:
        assert lines == [sentence.format(root=run_dir)]
    assert lines[-1].startswith("llamba: ") and "Traceback" not in failed.stderr


def test_verbose_raises_the_error_itself():
    with pytest.raises(ValueError, match="^load_model: "):
        llamba("--verbose", "generate", "no/such/folder", "x")


def test_as_a_process():
    command = [sys.executable, "-c", "from llamba_kernels.cli import run; run()", "generate", "no/such/folder", "x"]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1 and failed.stdout == ""
    assert (
        failed.stderr == "llamba: load_model: path_or_id must be a folder or a hub id owner/name; got no/such/folder\n"
    )
