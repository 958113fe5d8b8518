"""A disk that is full: one sentence, nothing lost, and the same command goes on.

No test may fill a real disk. A limit on the size of files gives every writer the same refusals, with another reason.
"""

import contextlib
import functools
import json
import resource

import pytest
import torch
from safetensors.torch import load_file
from test_cli import llamba, quickstart_arguments
from test_distill import RUNS

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


@pytest.fixture(scope="module")
def run(folders):
    def run(stage, out):
        function = {"align": align, "distill": distill, "tune": tune}[stage]
        inputs = [folders / "teacher"] if stage == "tune" else [folders / "converted", folders / "teacher"]
        function(*inputs, out, folders / "text.txt", save_every=4, **RUNS[stage])
        return out

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """What each stage gives on a disk with room."""
    folder = tmp_path_factory.mktemp("whole")
    return functools.cache(lambda stage: load_file(run(stage, folder / stage) / "model.safetensors"))


@pytest.mark.parametrize("stage", ["align", "distill", "tune"])
@pytest.mark.parametrize("room", [16_000, 300])  # a checkpoint does not fit; not even a line of metrics does
def test_a_stage_keeps_its_last_checkpoint_and_goes_on(stage, room, run, whole, tmp_path, monkeypatch):
    limit = contextlib.ExitStack()

    class Fill(training.Metrics):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 5:
                limit.enter_context(full_disk(room))

    with monkeypatch.context() as patch, limit, pytest.raises(OSError) as error:
        patch.setattr(training, "Metrics", Fill)
        run(stage, tmp_path / "out")
    partial = tmp_path / "out.partial"
    path = partial if room > 300 else partial / "metrics.jsonl"
    assert str(error.value).startswith(f"{stage}: {path} must be writable (make room, and the same command goes on")
    assert "File too large" in str(error.value)
    assert [path.name for path in partial.glob("checkpoint-*")] == ["checkpoint-4"]
    assert not list(partial.glob("staging/*")) and not (tmp_path / "out").exists()

    resumed = load_file(run(stage, tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole(stage).items())
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


def test_quickstart_goes_on_from_wherever_the_disk_was_full(run_dir):
    run = run_dir / "filled"
    arguments = *quickstart_arguments(run_dir, out=run.name), "--seeds", 1
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
        start = f"llamba: {command}: {run / path} must be writable (make room, and the same command goes on"
        assert lines[-1].startswith(start) and "too large" in lines[-1] and "Traceback" not in failed.stderr
    done = llamba(*arguments)
    assert done.returncode == 0, done.stderr
    assert "──" not in done.stdout.split("perplexity")[0]  # no stage ran again
    whole, filled = (json.loads((path / "results.json").read_text())["rows"] for path in (run_dir, run))
    whole = [row for row in whole if row["seed"] in (None, 0)]
    for first, second in zip(whole, filled, strict=True):
        assert {**first, **SPEEDS} == {**second, **SPEEDS}
    assert not list(run.glob("*.partial")) and not list(run.glob("*.tmp"))


SPEEDS = {"plain_tokens_per_second": 0, "speculative_tokens_per_second": 0}
