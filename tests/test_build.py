"""What the native libraries need and export, how instruction sets are kept apart, and the build's one-line errors."""

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import llamba_kernels
from llamba_kernels._load import native
from llamba_kernels.env import describe

pytestmark = pytest.mark.cpu_only  # about the ordinary build and its CPU kernels

PACKAGE = Path(llamba_kernels.__file__).parent
ROOT = Path(__file__).parents[1]
CUDA_LIBRARY = PACKAGE / "libllamba_cuda.so"
needs_cuda_library = pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="built without nvcc")
needs_objects = pytest.mark.skipif(not (ROOT / "build" / "csrc").exists(), reason="not built from this folder")


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def dynamic_section(library, tag):
    return re.findall(rf"\({tag}\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", PACKAGE / library))


def exported(library):
    return {line.split()[-1] for line in run("nm", "-D", "--defined-only", PACKAGE / library).splitlines()}


def declared(suffix):
    """Functions of llamba.h whose name ends in suffix."""
    header = (ROOT / "csrc" / "include" / "llamba.h").read_text()
    return {name for name in re.findall(r"LLAMBA_API [\w ]+\*? ?(llamba_\w+)\(", header) if name.endswith(suffix)}


SHARED = {"llamba_abi_version", "llamba_last_error", "llamba_last_status"}


def test_cpu_library_knows_no_torch_and_exports_the_interface_only():
    assert not [name for name in dynamic_section("libllamba_cpu.so", "NEEDED") if "torch" in name or "c10" in name]
    assert exported("libllamba_cpu.so") == declared("_cpu") | SHARED


def test_binding_finds_the_cpu_library_beside_it_and_torch_in_the_process():
    needed = dynamic_section("_C.so", "NEEDED")
    assert {"libllamba_cpu.so", "libtorch.so", "libtorch_cpu.so"} <= set(needed)
    assert not [name for name in needed if "cuda" in name or "python" in name]
    assert dynamic_section("_C.so", "RUNPATH") == ["$ORIGIN"]


@needs_cuda_library
def test_cuda_library_needs_no_torch_no_driver_and_no_cuda_runtime():
    assert not [name for name in dynamic_section(CUDA_LIBRARY.name, "NEEDED") if re.search("torch|c10|cuda", name)]
    assert exported(CUDA_LIBRARY.name) == declared("_cuda") | SHARED


@needs_cuda_library
def test_cuda_library_loads_without_a_driver_and_refuses_by_a_sentence():
    """Called as a C program would; with a device, too, the null pointer is not touched: the batch is empty there."""
    library = ctypes.CDLL(str(CUDA_LIBRARY))
    library.llamba_last_error.restype = ctypes.c_char_p
    assert library.llamba_abi_version() == 4

    class Commit(ctypes.Structure):
        _fields_ = [
            ("size", ctypes.c_size_t),
            ("data", ctypes.c_void_p),
            ("nslots", ctypes.c_int64),
            ("slot_stride", ctypes.c_int64),
            ("width", ctypes.c_int32),
            ("capacity", ctypes.c_int32),
            ("slots", ctypes.c_void_p),
            ("accepted", ctypes.c_void_p),
            ("path", ctypes.c_void_p),
            ("path_stride_batch", ctypes.c_int64),
            ("path_length", ctypes.c_int64),
            ("batch", ctypes.c_int64),
        ]

    batch = 0 if torch.cuda.is_available() else 1
    args = Commit(ctypes.sizeof(Commit), None, 1, 20, 4, 13, None, None, None, 0, 0, batch)
    status = library.llamba_cursor_commit_cuda(ctypes.byref(args), None)
    if torch.cuda.is_available():
        assert status == 0
    else:
        assert status == 3
        assert library.llamba_last_error().decode().startswith("cursor_commit: launch must succeed; got cudaError")


def test_env_says_what_is_built():
    facts = describe()
    assert facts["cpu kernels"].split()[0] in ("avx512bf16", "avx512", "avx2", "generic")
    if CUDA_LIBRARY.exists():
        assert native.llamba_cuda_problem() == b"" and facts["cuda kernels"].startswith("sm_")
    else:
        assert b"libllamba_cuda.so" in native.llamba_cuda_problem() and facts["cuda kernels"].startswith("not built")


def test_c_callers_of_another_version_are_refused():
    library = ctypes.CDLL(str(PACKAGE / "libllamba_cpu.so"))
    library.llamba_last_error.restype = ctypes.c_char_p
    args = (ctypes.c_uint64 * 64)(24)  # size is the first field of every struct
    for op in (
        "argmax",
        "attention_step",
        "causal_conv1d_update",
        "checkpointing_ssu",
        "gated_rms_norm",
        "kv_compact",
        "rms_norm",
        "rope",
        "selective_state_update",
        "silu_mul",
        "skinny_linear",
        "speculative_accept",
    ):
        assert getattr(library, f"llamba_{op}_cpu")(args) == 1
        sentence = library.llamba_last_error().decode()
        assert re.fullmatch(rf"{op}: size must be that of the struct, \d+; got 24", sentence)


# ---- instruction sets ----


def objects(isa):
    return sorted((ROOT / "build" / "csrc").rglob(f"*_isa.cpp.{isa}.o"))


@needs_objects
@pytest.mark.skipif(not describe()["cpu kernels"].startswith("avx"), reason="one instruction set only on this machine")
def test_instruction_sets_do_not_leak():
    """No instruction beyond its set in an object, and no symbol that the linker could merge across sets."""
    assert objects("avx512") and len(objects("avx512")) == len(objects("avx2")) == len(objects("generic"))
    assert [path.name for path in objects("avx512bf16")] == ["skinny_linear_isa.cpp.avx512bf16.o"]
    beyond = {"generic": r"%[yz]mm", "avx2": r"%zmm|\{%k[1-7]\}", "avx512": r"vdpbf16ps|vcvtne2?ps2?bf16"}
    for isa, forbidden in beyond.items():
        for path in objects(isa):
            assert not re.search(forbidden, run("objdump", "-d", path)), f"{path.name} has instructions beyond {isa}"
    assert re.search("vdpbf16ps", run("objdump", "-d", *objects("avx512bf16")))
    for isa in ("generic", "avx2", "avx512", "avx512bf16"):
        for path in objects(isa):
            for line in run("nm", "--defined-only", path).splitlines():
                kind, name = line.split()[-2:]
                assert kind not in "WwVvuC", f"{path.name} shares {name} with other objects"
                assert kind.islower() or f"6llamba{len(isa)}{isa}" in name, f"{path.name} exports {name}"


# ---- setup.py's errors: one line each ----


@pytest.fixture
def build(monkeypatch):
    """setup.py as a module, without running it; the variables it reads are unset."""
    for name in ("CXX", "CUDACXX", "CUDA_HOME", "LLAMBA_CUDA", "LLAMBA_CUDA_ARCHS", "LLAMBA_SANITIZE"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("llamba_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stops(function, *args):
    with pytest.raises(SystemExit) as stop:
        function(*args)
    return str(stop.value)


def test_no_nvcc(build, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert build.find_nvcc() is None
    monkeypatch.setenv("LLAMBA_CUDA", "1")
    assert stops(build.find_nvcc) == (
        "llamba_kernels: nvcc must be on PATH or named by CUDACXX or CUDA_HOME when LLAMBA_CUDA=1; got no nvcc"
    )
    monkeypatch.setenv("LLAMBA_CUDA", "yes")
    assert stops(build.find_nvcc) == "llamba_kernels: LLAMBA_CUDA must be 0, 1 or auto; got yes"
    monkeypatch.setenv("LLAMBA_CUDA", "0")
    assert build.find_nvcc() is None


def test_bad_arch(build, monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho sm_80 sm_90\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("LLAMBA_CUDA_ARCHS", "80;90a")
    assert build.find_archs(str(nvcc)) == ["80", "90a"]
    monkeypatch.setenv("LLAMBA_CUDA_ARCHS", "80, sm_90")
    assert stops(build.find_archs, str(nvcc)) == (
        f"llamba_kernels: LLAMBA_CUDA_ARCHS must name architectures of {nvcc}, such as 80 86 90a; got 'sm_90'"
    )


def test_ptxas_log_is_of_this_build_only(build, monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    (tmp_path / "scan_launch.cu.o.ptxas").write_text("Used 26 registers\n")
    (tmp_path / "gone_launch.cu.o.ptxas").write_text("Used 99 registers\n")
    monkeypatch.setattr(build, "sources", lambda pattern: ["scan_launch.cu"])
    build.write_ptxas_log(tmp_path, str(nvcc))
    assert (tmp_path / "ptxas.log").read_text() == "nvcc 13.0.88\nUsed 26 registers\n"
    build.write_ptxas_log(tmp_path, None)
    assert not (tmp_path / "ptxas.log").exists()


def test_sanitizer(build, monkeypatch):
    assert build.find_sanitizer() == ""
    for wish in ("", "address"):
        monkeypatch.setenv("LLAMBA_SANITIZE", wish)
        assert build.find_sanitizer() == wish
    monkeypatch.setenv("LLAMBA_SANITIZE", "thread")
    assert stops(build.find_sanitizer) == "llamba_kernels: LLAMBA_SANITIZE must be address or empty; got thread"


def test_sanitized_libraries_do_not_replace_the_others():
    environment = {**os.environ, "LLAMBA_SANITIZE": "address"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "llamba_kernels: LLAMBA_SANITIZE must be empty for a build in place (python setup.py build puts its libraries "
        "elsewhere); got address"
    )


def test_no_torch_and_old_torch(build, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.10.1+cpu")
    assert stops(build.find_torch) == "llamba_kernels: torch must be 2.11 or newer; got 2.10.1+cpu"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert stops(build.find_torch) == (
        "llamba_kernels: torch must be installed first (pip install torch==2.13.0) and visible to the build "
        "(pip install --no-build-isolation .); got none"
    )


def test_no_compiler_and_no_ninja(build, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert stops(build.find_cxx) == (
        "llamba_kernels: a C++ compiler must be installed (g++ 10 or newer, or clang++), or CXX name one; "
        "got no-such-compiler -m64"
    )
    monkeypatch.setenv("CXX", "false")
    assert stops(build.find_cxx) == (
        "llamba_kernels: the C++ compiler must know -std=c++20 (g++ 10 or newer, or clang++); "
        "got false, which refuses it"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert stops(build.find_ninja) == "llamba_kernels: ninja must be installed first (pip install ninja); got none"


def test_old_setuptools_is_one_line():
    program = f"import setuptools; setuptools.__version__ = '65.5.0'; exec(open({str(ROOT / 'setup.py')!r}).read())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == ("llamba_kernels: setuptools must be 77 or newer (pip install -U setuptools); got 65.5.0\n")
