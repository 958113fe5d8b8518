"""What a log shows of a long task: a line now and then, its end, and nothing of a short one."""

import pytest

from llamba_kernels.distill import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_each_half_minute_and_one_at_the_end(clock, capsys):
    for _ in progress.track(range(8), "eval"):
        clock[0] += 12
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["eval  3/8", "eval  6/8", "eval  8/8"]


def test_a_line_says_what_the_task_notes(clock, capsys):
    with progress.Steps("tune", 4) as steps:
        clock[0] = 40
        steps.done(2, "loss 1.5")
    assert capsys.readouterr().err == "tune  loss 1.5  2/4\n"


def test_a_short_task_is_not_worth_a_line(clock, capsys):
    assert list(progress.track(iter("abc"), "eval", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
