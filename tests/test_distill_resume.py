"""Training runs that end early: killed, failed or in each other's way. The same call goes on, to the same bits."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_distill import LAYERS, RUN, RUNS, TUNE

from llamba_kernels.distill import align, convert, distill, tune
from llamba_kernels.quickstart import quickstart

# Runs that kill themselves, without any clean-up, after an optimiser step; forked from one process, whose imports cost
# more than they do.
KILLED = """
    import json, os, signal, sys
    from llamba_kernels.distill import training
    from test_distill import RUNS
    import llamba_kernels.distill as stages

    class Kill(training.Metrics):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == last:
                os.kill(os.getpid(), signal.SIGKILL)

    training.Metrics = Kill
    for stage, last, *arguments in json.loads(sys.argv[1]):
        child = os.fork()
        if child == 0:
            getattr(stages, stage)(*arguments, save_every=4, **RUNS[stage])
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, stage
"""
KILLED_AFTER = {"align": 11, "distill": 8, "tune": 10}


@pytest.fixture(scope="module")
def killed(folders, tmp_path_factory):
    """By stage a folder with its student, resumed.partial of a killed run, and another student."""
    root, calls = tmp_path_factory.mktemp("killed"), []
    for stage, last in KILLED_AFTER.items():
        student = shutil.copytree(folders / "converted", root / stage / "student")
        models = [student] if stage == "tune" else [student, folders / "teacher"]
        calls.append([stage, last, *map(str, [*models, root / stage / "resumed", folders / "text.txt"])])
    here = Path(__file__).parent
    env = {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{here.parent}",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), json.dumps(calls)], env=env, check=True)
    convert(folders / "teacher", root / "other", LAYERS, folders / "text.txt", tokens=1024, window=64, seed=1)
    for stage in KILLED_AFTER:
        shutil.copytree(root / "other", root / stage / "other")
    return root


@pytest.mark.parametrize(("stage", "killed_after"), KILLED_AFTER.items())
def test_a_killed_run_resumes_to_the_same_bits(stage, killed_after, folders, killed, monkeypatch):
    function, run = {"align": align, "distill": distill, "tune": tune}[stage], RUNS[stage]
    tmp_path = killed / stage
    student, other = tmp_path / "student", tmp_path / "other"
    inputs = [student] if stage == "tune" else [student, folders / "teacher"]
    function(*inputs, tmp_path / "whole", folders / "text.txt", save_every=4, **run)
    partial = tmp_path / "resumed.partial"
    assert [p.name for p in partial.glob("checkpoint-*")] == [f"checkpoint-{(killed_after - 1) // 4 * 4}"]
    (partial / "staging").mkdir(exist_ok=True)
    (partial / "staging" / "checkpoint-99").mkdir()  # as if the kill had come amid a save
    with open(partial / "metrics.jsonl", "a") as file:
        file.write('{"step": 1')  # and amid a line

    with pytest.raises(ValueError, match=f"{stage}: lr must be 0.003 as in the interrupted run in .*; got 0.1"):
        function(*inputs, tmp_path / "resumed", folders / "text.txt", save_every=4, **{**run, "lr": 0.1})
    student.rename(tmp_path / "first")
    other.rename(student)  # another model under the same path
    with pytest.raises(ValueError, match=f"{stage}: (student|teacher) must be sha256:.* as in the interrupted run in"):
        function(*inputs, tmp_path / "resumed", folders / "text.txt", save_every=4, **run)

    monkeypatch.chdir(tmp_path)  # the same models under other paths
    function("first", *inputs[1:], "resumed", folders / "text.txt", save_every=4, **run)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    steps = [json.loads(line)["step"] for line in (tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 17))


def test_a_run_that_fails_after_training_keeps_a_checkpoint_of_what_trains(folders, tmp_path):
    call = (folders / "converted", folders / "teacher", tmp_path / "out", folders / "text.txt")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(TypeError):
        patch.setattr("llamba_kernels.distill.stage.new_folder", None)
        align(*call, **RUN)
    (checkpoint,) = (tmp_path / "out.partial").glob("checkpoint-*")
    names = load_file(checkpoint / "model.safetensors").keys()
    assert {name.split(".")[1] for name in names} == {"1", "2"} and len(names) == 16

    align(*call, **RUN)  # nothing is left but to write the result
    align(*call[:2], tmp_path / "whole", call[3], **RUN)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_one_process_at_a_time_works_towards_a_folder(folders, tmp_path):
    """Another one is refused, whatever stage it is; a lock that a killed process has left is none."""
    inputs, text = (folders / "converted", folders / "teacher"), folders / "text.txt"
    (tmp_path / "out.partial").mkdir()
    with open(tmp_path / "out.partial" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for call in (
            lambda: align(*inputs, tmp_path / "out", text, **RUN),
            lambda: tune(inputs[1], tmp_path / "out", text, **TUNE),
            lambda: quickstart(tmp_path / "out.partial"),
        ):
            with pytest.raises(ValueError, match="^(align|tune|quickstart): out_dir must be written by one process at"):
                call()
    align(*inputs, tmp_path / "out", text, **RUN)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="^distill: tokens must be at most what the text holds"):
        distill(*inputs, tmp_path / "new", text, **{**RUN, "tokens": 10**7})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
