"""Times launches on a GPU by replaying CUDA graphs; on a CPU (a dry run, for tests) by calling them."""

import math
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

LAUNCHES = 48  # in a graph, at least: a replay's own cost, a few microseconds, is shared by them ...
LONG_US = 100  # ... unless one takes longer than this: then fewer will do
SECONDS = 0.15  # of replays per row


@dataclass
class Prepared:
    """What a contender hands over for one case and mix."""

    launches: list[Callable[[], object]]  # one step each; together the mix, on arguments that no cache still holds
    check: Callable[[], dict[str, float]]  # {what of the results: its error over what is allowed}
    cycle: int = 1  # launches after which phases and copies are those of the first again
    nbytes: float | None = None  # what one launch must move at least; None: not modelled
    details: dict = field(default_factory=dict)  # kept with the row: W, the bound, ...


def copies_for(launch_bytes, held_bytes, device):
    """How many sets of arguments to rotate through, so that more than twice the L2 cache passes before one returns.

    launch_bytes: touched by a launch; held_bytes: of memory that one set takes. Raises MemoryError if two do not fit.
    """
    if device == "cpu":
        return 2
    copies = 2 + 2 * torch.cuda.get_device_properties(0).L2_cache_size // int(launch_bytes)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if 2 * held_bytes > 0.9 * free:
        raise MemoryError(f"needs {2 * held_bytes / 2**30:.0f} GiB of memory; {free / 2**30:.0f} GiB are free")
    return max(2, min(copies, int(0.9 * free / held_bytes)))


def rotation(nphases, ncopies, device):
    """(phase, copy) of every launch: all phases equally often, and neighbours on different copies."""
    least = max(ncopies, LAUNCHES if device == "cuda" else 1)
    return [(i % nphases, i % ncopies) for i in range(-(-least // nphases) * nphases)]


def launches_in_graph(count, cycle, us):
    """How many of `count` launches a graph has if one takes `us`: all, or whole cycles of about LAUNCHES * LONG_US."""
    return min(count, math.ceil(LAUNCHES * LONG_US / us / cycle) * cycle)


def replays_for(replay_ms, seconds):
    return max(3, min(100, int(seconds * 1e3 / replay_ms)))


def times_us(launches, device, cycle=1, seconds=SECONDS):
    """(least, median) microseconds per launch, of `seconds` of replays of a graph of the launches.

    A graph of the first cycle tells what a launch takes, and so how many of them the graph that is timed has.
    """
    if device == "cpu":
        return _cpu_times(launches)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which may still be filling the arguments
    first = launches[:cycle]
    with torch.cuda.stream(stream):  # warm up: whatever compiles, tunes or loads does so here
        for launch in first:
            launch()
    stream.synchronize()
    launch_ms = _replays(_capture(first, stream), 3)[-1] / len(first)
    held = launches[: launches_in_graph(len(launches), cycle, 1e3 * launch_ms)]
    times = _replays(_capture(held, stream), replays_for(launch_ms * len(held), seconds))
    return 1e3 * min(times) / len(held), 1e3 * statistics.median(times) / len(held)


def _capture(launches, stream):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for launch in launches:
            launch()
    return graph


def _replays(graph, rounds):
    """Milliseconds of each replay, between events of its own."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in pairs:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]


def _cpu_times(launches):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for launch in launches:
            launch()
        times.append(1e6 * (time.perf_counter() - start) / len(launches))
    return min(times), statistics.median(times)


def copy_gb_per_s(device):
    """1e9 bytes per second read and written by copying a tensor far larger than the caches; the best replay."""
    size = 1 << 22 if device == "cpu" else min(1 << 30, torch.cuda.mem_get_info()[0] // 8)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    least, _ = times_us([lambda: target.copy_(source)] * 20, device)
    return 2 * size / least / 1e3


def machine(device, commit=None):
    """The `machine` of a results file (gpu_results.py); no host name."""
    if commit is None:
        git = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda, "commit": commit or "unknown"}
    facts["copy_gb_per_s"] = round(copy_gb_per_s(device), 1)
    if device == "cpu":
        return {"gpu": "cpu", "compute_capability": "none", "sms": 0, "clock_mhz": 0, **facts}
    properties = torch.cuda.get_device_properties(0)
    driver, clock, clocks = _nvidia_smi("driver_version", "clocks.max.sm", "clocks.sm,clocks.mem,clocks.max.mem")
    return {
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "sms": properties.multi_processor_count,
        "clock_mhz": int(clock.split()[0]) if clock[:1].isdigit() else getattr(properties, "clock_rate", 0) // 1000,
        "l2_mib": properties.L2_cache_size >> 20,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver,
        "clocks_sm_mem_maxmem": clocks,
        **facts,
    }


def _nvidia_smi(*queries):
    """The answer to each query, with units; "unknown" where there is none."""
    if not shutil.which("nvidia-smi"):
        return ["unknown"] * len(queries)
    command = ["nvidia-smi", "--format=csv,noheader", "-i", "0"]
    return [
        subprocess.run([*command, f"--query-gpu={query}"], capture_output=True, text=True).stdout.strip() or "unknown"
        for query in queries
    ]
