"""What a build says of its CUDA kernels: ptxas of registers and memory, the launchers of threads and shared memory."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from cuda_occupancy import ARCHS, most_shared

ROOT = Path(__file__).parents[1]
PTXAS_LOG = ROOT / "build" / "ptxas.log"  # only after a build with nvcc


class Usage(NamedTuple):
    registers: int
    static_shared: int  # bytes, as all that follow
    stack: int
    spill_stores: int
    spill_loads: int


class Launch(NamedTuple):
    kernel: str
    threads: int  # of a block
    shared: int  # bytes of a block, dynamic


def short_names(mangled):
    """{mangled: name without namespaces, return type and argument list}; no two may be the same."""
    command = ["c++filt", *mangled]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {symbol: short_name(name) for symbol, name in zip(mangled, names, strict=True)}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"kernels must differ in name, not only in namespace or arguments; got {sorted(names.values())}"
        )
    return names


def short_name(demangled):
    name = re.sub(r"\(anonymous namespace\)::|\bllamba::", "", demangled.removeprefix("void "))
    name = re.sub(r"\([\w ]+\)(?=[\w-])", "", name)  # the type of a template argument that is a number
    return name.partition("(")[0].replace("__nv_bfloat16", "bfloat16").replace("__half", "float16")


def read_ptxas(log):
    """nvcc's version, {(kernel, arch): Usage}; a function that a kernel calls counts with it."""
    usage = {}
    for part in log.split("Compiling entry function ")[1:]:
        kernel, arch = re.match(r"'(\w+)' for '(\w+)'", part).groups()
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        sums = (sum(map(int, column)) for column in zip(*frames, strict=True))
        usage[kernel, arch] = Usage(registers, int(shared[1]) if shared else 0, *sums)
    names = short_names(sorted({kernel for kernel, _ in usage}))
    return re.match(r"nvcc (\S+)", log)[1], {(names[kernel], arch): one for (kernel, arch), one in usage.items()}


def run_launchers():
    """The reference shapes and {Launch: set of architectures}: what this build's launchers do on each of ARCHS."""
    ninja = (ROOT / "build" / "build.ninja").read_text()
    compiler = re.search(r"^rule cxx\n  command = (.*?) -MD", ninja, re.MULTILINE)[1]
    objects = re.search(r"libllamba_cuda\.so: nvcc_link (.*)", ninja)[1]
    launches = {}
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/launches"
        flags = "-std=c++20 -Wall -Icsrc/include tests/cuda_launches*.cpp tests/cuda_runtime.cpp"
        subprocess.run(f"{compiler} {flags} {objects} -o {program}", shell=True, cwd=ROOT, check=True)
        for arch, sm in ARCHS.items():
            command = [program, re.search(r"\d+", arch)[0], str(most_shared(sm))]
            shape, *lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
            for launch in read_launches(lines):
                launches.setdefault(launch, set()).add(arch)
    return shape, launches


def read_launches(lines):
    """The different ones of lines "mangled threads bytes"."""
    names = short_names(sorted({line.split()[0] for line in lines}))
    return {Launch(names[kernel], int(threads), int(shared)) for kernel, threads, shared in map(str.split, lines)}
