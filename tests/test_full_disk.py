"""A disk that is full: one sentence, nothing lost, and the same command goes on.

No test may fill a real disk. A limit on the size of files gives every writer the same refusals, with another reason.
"""

import contextlib
import json
import resource

import pytest
import torch
from safetensors.torch import load_file
from test_cli import llamba, quickstart_arguments
from test_distill import RUNS
from tiny import write_teacher, write_text

from llamba_kernels import quickstart
from llamba_kernels.distill import align, convert, distill, training, tune
from llamba_kernels.distill.folders import write_file


@contextlib.contextmanager
def full_disk(room):
    """No file may grow beyond `room` bytes. Python ignores the signal that comes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("stage", ["align", "distill", "tune"])
@pytest.mark.parametrize("room", [16_000, 300])  # a checkpoint does not fit; not even a line of metrics does
def test_a_stage_keeps_its_last_checkpoint_and_goes_on(stage, room, folders, tmp_path, monkeypatch):
    function = {"align": align, "distill": distill, "tune": tune}[stage]
    inputs = [folders / "teacher"] if stage == "tune" else [folders / "converted", folders / "teacher"]

    def run(out):
        return function(*inputs, tmp_path / out, folders / "text.txt", save_every=4, **RUNS[stage])

    run("whole")
    limit = contextlib.ExitStack()

    class Fill(training.Metrics):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                limit.enter_context(full_disk(room))

    with monkeypatch.context() as patch, limit, pytest.raises(OSError) as error:
        patch.setattr(training, "Metrics", Fill)
        run("out")
    partial = tmp_path / "out.partial"
    path = partial if room > 300 else partial / "metrics.jsonl"
    assert str(error.value).startswith(f"{stage}: {path} must be writable (make room, and the same command goes on")
    assert "File too large" in str(error.value)
    assert [path.name for path in partial.glob("checkpoint-*")] == ["checkpoint-4"]
    assert not list(partial.glob("staging/*")) and not (tmp_path / "out").exists()

    run("out")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [line["step"] for line in training.read_metrics(tmp_path / "out" / "metrics.jsonl")]
    assert steps == list(range(1, 17))


def test_a_model_that_does_not_fit_leaves_no_folder(folders, tmp_path):
    call = (folders / "teacher", tmp_path / "out", [1], folders / "text.txt", 512, 64)
    with (
        full_disk(16_000),
        pytest.raises(OSError, match=f"convert: {tmp_path}/out must be writable .*; got .*too large"),
    ):
        convert(*call)
    assert not list(tmp_path.iterdir())
    convert(*call)


def test_a_file_is_replaced_wholly_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "file.json"
    write_file("x", path, "old")
    with full_disk(100), pytest.raises(OSError, match=f"^x: {path} must be writable .*; got File too large$"):
        write_file("x", path, "new" * 100)
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file.json"]
    write_file("x", path, "new" * 100)
    assert path.read_text() == "new" * 100


# Where quickstart writes, in order: what is called there, how much room there is, whose sentence it is, which path.
PLACES = (
    ("fetch_teacher", 16_000, "teacher", "teacher"),
    ("rank_layers", 100, "quickstart", "progress.json"),
    ("convert", 16_000, "convert", "converted"),
    ("align", 16_000, "align", "aligned.partial"),
    ("distill", 16_000, "distill", "hybrid.partial"),
    ("tune", 16_000, "tune", "tuned.partial"),
    ("evaluate_windows", 2_000, "quickstart", "progress.json"),
    ("results_plot", 2_000, "quickstart", "quickstart.png"),
    ("describe", 2_000, "quickstart", "results.json"),
)


def test_quickstart_goes_on_from_wherever_the_disk_was_full(tmp_path):
    write_teacher(tmp_path / "llama")
    write_text(tmp_path)
    whole = llamba(*quickstart_arguments(tmp_path, out="whole"), "--seeds", 1)
    assert whole.returncode == 0, whole.stderr
    arguments = *quickstart_arguments(tmp_path, out="run"), "--seeds", 1
    for name, room, command, path in PLACES:
        limit, function = contextlib.ExitStack(), getattr(quickstart, name)

        def work(*args, limit=limit, function=function, room=room, **options):
            limit.enter_context(full_disk(room))
            return function(*args, **options)

        with pytest.MonkeyPatch.context() as patch, limit:
            patch.setattr(quickstart, name, work)
            failed = llamba(*arguments)
        assert failed.returncode == 1, name
        lines = [line for line in failed.stderr.splitlines() if line]
        start = (
            f"llamba: {command}: {tmp_path / 'run' / path} must be writable (make room, and the same command goes on"
        )
        assert lines[-1].startswith(start) and "too large" in lines[-1] and "Traceback" not in failed.stderr
    done = llamba(*arguments)
    assert done.returncode == 0, done.stderr
    assert "──" not in done.stdout.split("perplexity")[0]  # no stage ran again
    results = [json.loads((tmp_path / out / "results.json").read_text())["rows"] for out in ("whole", "run")]
    for first, second in zip(*results, strict=True):
        assert {**first, **SPEEDS} == {**second, **SPEEDS}
    assert not list((tmp_path / "run").glob("*.partial")) and not list((tmp_path / "run").glob("*.tmp"))


SPEEDS = {"plain_tokens_per_second": 0, "speculative_tokens_per_second": 0}
