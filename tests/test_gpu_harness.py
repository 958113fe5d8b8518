"""The GPU benchmark's clock, copies and machine header, with a torch.cuda that only pretends."""

import contextlib
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "bench"))
import gpu_harness
import gpu_peers
from gpu_harness import LAUNCHES, copies_for, launches_in_graph, machine, replays_for, rotation, times_us

pytestmark = pytest.mark.cpu_only


MIB, GIB = 1 << 20, 1 << 30


class Pretended:
    """Records what happens in order; a replay takes `ms` per captured launch, every third one twice as long."""

    def __init__(self):
        self.ms, self.now, self.captured, self.replays, self.log, self.free = 0.5, 0.0, None, 0, [], 100 * GIB
        self.properties = SimpleNamespace(
            name="NVIDIA Made-up", major=9, minor=0, multi_processor_count=132, L2_cache_size=60 * MIB, total_memory=GIB
        )
        self.Stream = lambda: SimpleNamespace(
            synchronize=lambda: self.log.append("synchronize"), wait_stream=lambda other: None
        )
        self.CUDAGraph = lambda: SimpleNamespace(replay=self.replay)
        self.stream, self.current_stream = contextlib.nullcontext, lambda: None
        self.synchronize = self.empty_cache = lambda: None
        self.get_device_properties = lambda index: self.properties
        self.mem_get_info = lambda: (self.free, 140 * GIB)

    @contextlib.contextmanager
    def graph(self, graph, stream):
        self.log.append("capture")
        before = len(self.log)
        yield
        self.captured = len(self.log) - before

    def replay(self):
        self.replays += 1
        self.now += self.ms * self.captured * (2 if self.replays % 3 == 0 else 1)

    def Event(self, enable_timing):
        event = SimpleNamespace(record=lambda: setattr(event, "at", self.now))
        event.elapsed_time = lambda end: end.at - event.at
        return event


@pytest.fixture
def cuda(monkeypatch):
    pretended = Pretended()
    monkeypatch.setattr(torch, "cuda", pretended)
    return pretended


@pytest.mark.parametrize("ms, held", [(0.05, 6), (1, 4), (2, 2)])
def test_times_are_per_launch_of_replays_after_a_warm_up(cuda, monkeypatch, ms, held):
    monkeypatch.setattr(gpu_harness, "LAUNCHES", 60)  # or 6 ms of them
    cuda.ms = ms  # the third of the first replays takes twice as long: a graph of 6 ms has this many launches
    launches = [lambda i=i: cuda.log.append(i) for i in range(6)]
    least, median = times_us(launches, "cuda", cycle=2)
    assert cuda.log == [0, 1, "synchronize", "capture", 0, 1, "capture", *range(held)]
    assert cuda.captured == held and [least, median] == pytest.approx([1e3 * ms] * 2)
    assert cuda.replays == 3 + replays_for(2 * ms * held, gpu_harness.SECONDS)


def test_median_of_the_replays(cuda):
    cuda.captured = 4
    times = gpu_harness._replays(cuda.CUDAGraph(), 3)
    assert sorted(times) == [2, 2, 4] and statistics.median(times) == 2


def test_launches_of_a_graph():
    assert [launches_in_graph(48, 1, us) for us in (2, 100, 200, 2400, 5e6)] == [48, 48, 24, 2, 1]
    assert [launches_in_graph(48, 16, us) for us in (2, 100, 200, 2400)] == [48, 48, 32, 16]  # whole cycles
    assert launches_in_graph(50, 10, 100) == 50 and launches_in_graph(50, 10, 5e6) == 10
    assert launches_in_graph(164, 324, 5e6) == 164  # every copy: caches would hold fewer


def test_replays_of_a_graph():
    assert [replays_for(ms, 0.15) for ms in (0.1, 2, 15, 100, 2400)] == [100, 75, 10, 3, 3]


def seconds_of_a_row(us, count, cycle, budgets):
    """On the device: per budget the warm-up, three replays of the first cycle, and the replays that are timed."""
    launches = 0
    for seconds in budgets:
        held = launches_in_graph(count, cycle, us)
        launches += 4 * min(cycle, count) + held * replays_for(us * held / 1e3, seconds)
    return launches * us / 1e6


def test_a_slow_row_takes_little_longer_than_its_budget():
    """The slowest on an H200: 2.4 ms a launch of the snapshot, whose tiles are searched; 0.8 ms of ours."""
    search = [gpu_peers.TILE_SECONDS] * 3 + [gpu_harness.SECONDS]
    assert seconds_of_a_row(2400, 48, 2, search) < 2 * sum(search)
    for us in (3, 10, 30, 100, 300, 800):
        assert seconds_of_a_row(us, 48, 16, [gpu_harness.SECONDS]) < 1.5 * gpu_harness.SECONDS


def test_copies_pass_more_than_twice_the_cache_and_fit_the_memory(cuda):
    for launch in (3 * MIB, 50 * MIB, 4 * GIB):
        copies = copies_for(launch, launch, "cuda")
        assert (copies - 1) * launch > 2 * 60 * MIB and (copies == 2 or (copies - 3) * launch <= 2 * 60 * MIB)
    cuda.free = 10 * MIB
    assert copies_for(MIB, MIB, "cuda") == 9
    with pytest.raises(MemoryError, match="needs 8 GiB of memory; 6 GiB are free"):
        cuda.free = 6 * GIB
        copies_for(4 * GIB, 4 * GIB, "cuda")


def test_a_graph_has_enough_launches():
    assert len(rotation(5, 2, "cuda")) == 50 and len(rotation(16, 2, "cuda")) == LAUNCHES
    assert len(rotation(4, 162, "cuda")) == 164


def test_header_of_a_gpu(cuda, monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\ncase "$*" in *driver*) echo 580.1;; *"gpu=clocks.max.sm") echo 1980 MHz;; *) echo x;; esac\n'
    )
    smi.chmod(0o755)
    monkeypatch.setattr(gpu_harness, "copy_gb_per_s", lambda device: 4321.98)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    header = machine("cuda", "a commit")
    assert header | {"torch": None, "cuda": None} == {
        **{"gpu": "NVIDIA Made-up", "compute_capability": "9.0", "sms": 132, "clock_mhz": 1980, "l2_mib": 60},
        **{"memory_gib": 1.0, "driver": "580.1", "clocks_sm_mem_maxmem": "x", "torch": None, "cuda": None},
        **{"commit": "a commit", "copy_gb_per_s": 4322.0},
    }
    smi.unlink()
    monkeypatch.setattr(gpu_harness.shutil, "which", lambda name: None)
    assert machine("cuda", "a commit")["driver"] == "unknown"
