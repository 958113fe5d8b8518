"""Measures rows of benchmark tables: an operator's bytes and time, the read bandwidth, the torch formula, a peer."""

import functools
import itertools
import statistics
import subprocess
import time
from pathlib import Path

import pytest
import torch

from llamba_kernels.env import describe

COLD_BYTES = 512 << 20  # arguments rotate through this much memory: server processors have caches of 96 MiB and more
ROUNDS = 60


def cold_copies(make, nbytes):
    """As many results of make() as fill COLD_BYTES: give each round another one."""
    return [make() for _ in range(max(2, -(-COLD_BYTES // nbytes)))]


def seconds(function, arguments, rounds):
    """Sorted times of function(argument), the arguments in turn."""
    times = []
    for argument in itertools.islice(itertools.cycle(arguments), rounds):
        start = time.perf_counter()
        function(argument)
        times.append(time.perf_counter() - start)
    return sorted(times)


@functools.cache
def _big_array():
    return torch.ones(COLD_BYTES // 4)


def read_bandwidth():
    """Bytes per second of summing an array larger than the caches, best of 8."""
    return COLD_BYTES / seconds(torch.sum, [_big_array()], 8)[0]


def others_load():
    """Cores that other processes use, over a fifth of a second in which this one sleeps. NaN if unknown."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return float("nan")

    def ticks():  # user, nice, system, idle, iowait, irq, softirq, steal, ...: hundredths of a second, all cores
        fields = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields) - fields[3] - fields[4]

    before = ticks()
    time.sleep(0.2)
    return (ticks() - before) / 100 / 0.2


def wait_for_quiet(patience):
    """Returns the load of the others once it is below a tenth of a core, or what it is after `patience` seconds."""
    deadline = time.monotonic() + patience
    while (load := others_load()) >= 0.1 and time.monotonic() < deadline:
        time.sleep(0.5)
    return load


@functools.cache
def header():
    """The machine and what was measured on it; no host name."""
    root = Path(__file__).parent
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return {
        **describe(),
        "commit": commit.stdout.strip() or "unknown",
        "read GB/s": round(read_bandwidth() / 1e9, 1),
        "others' load, cores": round(others_load(), 2),
    }


class Rows:
    """The rows of one run, and how one is measured."""

    KEY = pytest.StashKey()
    COLUMNS = ["case", "us min", "us median", "GB/s", "% read", "torch us", "x torch", "peer", "peer us", "x peer"]

    def __init__(self):
        self.rows = {}  # operator -> rows
        self.tables = {}  # title -> rows of strings, the first the columns: tables of another kind
        self.patience = 60.0  # seconds that the whole run may spend waiting for others to finish

    def measurer(self, benchmark, operator):
        return functools.partial(self.measure, benchmark, operator)

    def measure(self, benchmark, operator, case, ours, formula, arguments, check, nbytes, peer=None):
        """Measure ours(argument) and formula(argument), the torch formula, with the arguments in turn.

        check() raises if the result is wrong: then there is no row. nbytes: what one call must read and write at least.
        peer: (name, call) of another package's operator, call(argument) doing the same work, or None; see peers.py.
        GB/s, % read, x torch and x peer are of the medians. A row measured beside other work is marked with *.
        """
        check()
        start = time.monotonic()
        load = wait_for_quiet(self.patience)
        self.patience -= time.monotonic() - start
        bandwidth = read_bandwidth()
        formula_median = statistics.median(seconds(formula, arguments, ROUNDS // 3))
        peer_name, peer_call = peer or ("-", None)
        peer_median = statistics.median(seconds(peer_call, arguments, ROUNDS)) if peer else float("nan")
        turns = itertools.cycle(arguments)
        benchmark.pedantic(ours, setup=lambda: ((next(turns),), {}), rounds=ROUNDS, warmup_rounds=3)
        load = max(load, others_load())
        least, median = benchmark.stats["min"], benchmark.stats["median"]
        benchmark.extra_info.update(
            case=case,
            nbytes=nbytes,
            gb_per_s=nbytes / median / 1e9,
            read_gb_per_s=bandwidth / 1e9,
            torch_us=formula_median * 1e6,
            peer=peer_name,
            peer_us=peer_median * 1e6 if peer else None,
            others_load=load,
        )
        self.rows.setdefault(operator, []).append(
            [
                case + (" *" if load >= 0.1 else ""),
                f"{least * 1e6:.1f}",
                f"{median * 1e6:.1f}",
                f"{nbytes / median / 1e9:.1f}",
                f"{100 * nbytes / median / bandwidth:.0f}",
                f"{formula_median * 1e6:.1f}",
                f"{formula_median / median:.2f}",
                peer_name,
                f"{peer_median * 1e6:.1f}" if peer else "-",
                f"{peer_median / median:.2f}" if peer else "-",
            ]
        )

    def table(self):
        if not self.rows and not self.tables:
            return
        yield " | ".join(f"{name} {value}" for name, value in header().items())
        standard = {operator: [self.COLUMNS, *rows] for operator, rows in self.rows.items()}
        for operator, rows in (standard | self.tables).items():
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            yield ""
            yield operator
            for row in rows:
                cells = [
                    text.ljust(width) if i == 0 else text.rjust(width)
                    for i, (text, width) in enumerate(zip(row, widths, strict=True))
                ]
                yield "  ".join(cells)
        if any(row[0].endswith("*") for rows in self.rows.values() for row in rows):
            yield "* other processes used more than a tenth of a core: the minimum is worth more than the median"
