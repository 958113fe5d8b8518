"""`pytest bench --benchmark`: one table per operator; add --benchmark-json=FILE to keep the numbers.

pytest-benchmark runs and stores; its own table is replaced by one with bytes, bandwidth and the torch formula. The rows
measured on a GPU have a file of their own: --results.
"""

import pytest
from gpu_harness import machine
from gpu_peers import versions
from gpu_results import Results, lines
from harness import Rows, header

GPU_RESULTS = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="run the benchmarks; without it they are skipped")
    parser.addoption("--results", default="mamba2_verify.json", help="file that takes the rows measured on a GPU")
    parser.addoption("--resume", action="store_true", help="on a GPU: leave the rows alone that are in that file")
    parser.addoption("--full-grid", action="store_true", help="on a GPU: every shape, batch, window and dtype")
    parser.addoption("--fold-every", type=int, help="on a GPU: the sessions' W; default: gpu_cases.FOLD_EVERY")
    parser.addoption("--commit", help="what to call this version in the rows measured on a GPU; default: git's name")


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


@pytest.fixture(scope="session")
def gpu_results(request):
    """The results file of the run's GPU; what it held of other rows stays."""
    option = request.config.getoption
    results = Results(option("--results"), machine("cuda", option("--commit")) | {"peers": versions()})
    request.config.stash[GPU_RESULTS] = results
    return results


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[Rows.KEY].table():
        terminalreporter.write_line(line)
    if GPU_RESULTS in config.stash:
        for line in lines(config.stash[GPU_RESULTS].data):
            terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)  # pytest-benchmark is not needed for the rows measured on a GPU
def pytest_benchmark_update_machine_info(config, machine_info):
    """Our header instead of pytest-benchmark's, which names the host."""
    machine_info.clear()
    machine_info.update(header())


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Keeps what the table needs: no single rounds, no names of folders and branches."""
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "dirty")}
    for benchmark in output_json["benchmarks"]:
        del benchmark["stats"]["data"]
        for key in ("group", "param", "params", "options"):
            del benchmark[key]
