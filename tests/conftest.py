"""Every test: a fixed seed, and memory that torch leaves uninitialised holds NaN.

--device simt: operators with a CUDA kernel run that kernel's own source under the executor of csrc/simt (test_simt.py
does so); --device cuda: on the GPU. Tests marked cpu_only are left out there, tests marked device_only everywhere else.
"""

import ctypes
import gc
import os
import shutil
from pathlib import Path

# Two test processes on two cores: OpenMP threads that spin while waiting would slow everything by 10x.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import on_device  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# In this mode torch.empty and its kin hold NaN, or the largest integer: reading what nobody wrote shows up.
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "simt", "cuda"), default="cpu", help="where operators run")
    parser.addoption("--simt-seed", type=int, default=1, help="of the thread schedules under --device simt")
    parser.addoption("--share", type=int, default=1, help="run one in so many cases of every test, by --simt-seed")


def pytest_configure(config):
    device = config.getoption("--device")
    if device == "simt":
        try:
            on_device.simt_library()
        except RuntimeError as problem:
            raise pytest.UsageError(str(problem)) from None
        on_device.simt_library().llamba_simt_seed(ctypes.c_uint64(config.getoption("--simt-seed")))
    if device == "cuda":
        on_device.run_operators_on_cuda()


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config, items):
    leave_out = "device_only" if config.getoption("--device") == "cpu" else "cpu_only"
    kept = [item for item in items if not item.get_closest_marker(leave_out)]
    kept = share_of(kept, config.getoption("--share"), config.getoption("--simt-seed"))
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def share_of(items, share, seed):
    """Of the cases of each test one in `share`, at least one; other seeds choose others.

    Multiples of the golden ratio, so that no factor of the cases, whichever its period, goes without some value.
    """
    cases = {}
    for item in items:
        cases.setdefault((item.path, item.name.split("[")[0]), []).append(item)
    chosen = set()
    for each in cases.values():
        order = sorted(range(len(each)), key=lambda i: (i + seed) * 0.6180339887 % 1)
        chosen.update(each[i] for i in order[: -(-len(each) // share)])
    return [item for item in items if item in chosen]


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()  # what the imports left: transformers' Trainer collects garbage at each end, 0.3 s with all that


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A tiny teacher, text.txt and the converted model: made once, only read."""
    from tiny import CONVERTED, write_teacher, write_text

    from llamba_kernels.distill import convert

    folder = tmp_path_factory.mktemp("distill")
    torch.manual_seed(0)
    write_teacher(folder / "teacher")
    write_text(folder)
    convert(folder / "teacher", folder / "converted", CONVERTED, folder / "text.txt", tokens=1024, window=64)
    return folder


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A finished quickstart: llama, text.txt, run, and what it has said at first, stdout.txt and results.json."""
    from test_cli import llamba, quickstart_arguments
    from tiny import write_teacher, write_text

    root = tmp_path_factory.mktemp("cli")
    write_teacher(root / "llama")
    write_text(root)
    done = llamba(*quickstart_arguments(root))
    assert done.returncode == 0, done.stderr
    root.joinpath("stdout.txt").write_text(done.stdout)
    shutil.copy(root / "run" / "results.json", root)
    return root


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The model folders of damaged.py: made once, only read."""
    from damaged import write_models

    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def plain():
    """A tiny hybrid and the 60 greedy tokens that it decodes plainly after PROMPT."""
    from speculation import PROMPT, tiny_model

    from llamba_kernels.speculative import SpeculativeDecoder

    model = tiny_model()
    return model, SpeculativeDecoder(model, window=1).generate(PROMPT, 60).tokens


@pytest.fixture
def copy_of(saved, tmp_path):
    """A copy of one of them, to damage."""
    return lambda kind: Path(shutil.copytree(saved / kind, tmp_path / kind))


@pytest.fixture
def simt(request):
    """The executor's library: for tests that tell launchers of another device, or draw other schedules."""
    if request.config.getoption("--device") != "simt":
        pytest.skip("only the executor can be told schedules and devices")
    return on_device.simt_library()
