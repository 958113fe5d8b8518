"""The C++ example: compiled as its head says, linked with the CPU library alone, and run on every instruction set."""

import os
import subprocess
from pathlib import Path

import pytest
import sanitized

import llamba_kernels

pytestmark = pytest.mark.cpu_only  # about the ordinary build

SOURCE = sanitized.ROOT / "csrc" / "example" / "verify_example.cpp"


def test_the_example_links_no_torch_and_finds_the_bits_equal(tmp_path):
    library, program = Path(llamba_kernels.__file__).with_name("libllamba_cpu.so"), tmp_path / "verify_example"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    options = ["-std=c++17", f"-I{sanitized.ROOT / 'csrc' / 'include'}", f"-Wl,-rpath,{library.parent}"]
    subprocess.run([sanitized.compiler(), *warnings, *options, SOURCE, library, "-o", program], check=True)
    needed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    names = " ".join(line.split()[0] for line in needed.splitlines())  # without the addresses, which may spell c10
    assert "libllamba_cpu.so" in names and "torch" not in names and "c10" not in names
    for isa in ("", "avx2", "generic"):
        environment = {**os.environ, "LLAMBA_CPU_ISA": isa}
        done = subprocess.run([program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "= 6 single tokens, bit for bit" in done.stdout, done.stdout
