"""`pytest bench --benchmark`: one table per operator; add --benchmark-json=FILE to keep the numbers.

pytest-benchmark runs and stores; its own table is replaced by one with bytes, bandwidth and the torch formula.
"""

import pytest
from harness import Rows, header


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks; without it they are skipped")


def pytest_configure(config):
    config.option.benchmark_quiet = True
    config.stash[Rows.KEY] = Rows()


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--benchmark"):
        for item in items:
            item.add_marker(pytest.mark.skip(reason="benchmarks run with --benchmark"))


@pytest.fixture
def row(request, benchmark):
    """row(case, ours, formula, check, nbytes): measures one row of the operator's table; see harness.Rows.measure."""
    return request.config.stash[Rows.KEY].measurer(benchmark, request.module.__name__.removeprefix("bench_"))


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[Rows.KEY].table():
        terminalreporter.write_line(line)


def pytest_benchmark_update_machine_info(config, machine_info):
    """Our header instead of pytest-benchmark's, which names the host."""
    machine_info.clear()
    machine_info.update(header())


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keeps what the table needs: no single rounds, no names of folders and branches."""
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "dirty")}
    for benchmark in output_json["benchmarks"]:
        del benchmark["stats"]["data"]
        for key in ("group", "param", "params", "options"):
            del benchmark[key]
