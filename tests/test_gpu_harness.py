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
from gpu_harness import LAUNCHES, copies_for, machine, rotation, times_us

pytestmark = pytest.mark.cpu_only


MIB, GIB = 1 << 20, 1 << 30


class Pretended:
    """Records what happens in order; a replay takes 0.5 ms per captured launch, every third one twice as long."""

    def __init__(self):
        self.now, self.captured, self.replays, self.log, self.free = 0.0, None, 0, [], 100 * GIB
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
        self.now += 0.5 * self.captured * (2 if self.replays % 3 == 0 else 1)

    def Event(self, enable_timing):
        event = SimpleNamespace(record=lambda: setattr(event, "at", self.now))
        event.elapsed_time = lambda end: end.at - event.at
        return event


@pytest.fixture
def cuda(monkeypatch):
    pretended = Pretended()
    monkeypatch.setattr(torch, "cuda", pretended)
    return pretended


def test_times_are_per_launch_of_replays_after_a_warm_up(cuda):
    launches = [lambda i=i: cuda.log.append(i) for i in range(4)]
    least, median = times_us(launches, "cuda")
    assert cuda.log == [0, 1, 2, 3, "synchronize", "capture", 0, 1, 2, 3]
    assert cuda.captured == 4 and least == pytest.approx(500) and median == pytest.approx(500)
    assert cuda.replays == 3 + int(gpu_harness.SECONDS * 1e3 / 4)  # the last of the first 3 took 4 ms
    times = gpu_harness._replays(cuda.CUDAGraph(), 3)
    assert sorted(times) == [2, 2, 4] and statistics.median(times) == 2


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
