"""Compiles and loads eager_mamba1_step.cpp and eager_mamba2_step.cpp for this processor, into build/."""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


@functools.cache
def _function(name, sizes, pointers):
    """The function of bench/<name>.cpp, which takes so many sizes, then so many pointers."""
    source, library = ROOT / "bench" / f"{name}.cpp", ROOT / "build" / f"{name}.so"
    newest = max(path.stat().st_mtime for path in [source, *(ROOT / "csrc" / "common").glob("*.h")])
    if not library.exists() or library.stat().st_mtime < newest:
        library.parent.mkdir(exist_ok=True)
        folder = Path(torch.__file__).parent
        flags = "-std=c++20 -O3 -march=native -ffp-contract=off -fno-math-errno -fPIC -shared -w -DTORCH_STABLE_ONLY "
        flags += "-DTORCH_TARGET_VERSION=0x020b000000000000 -Icsrc -Icsrc/include"
        command = [*shlex.split(os.environ.get("CXX") or shutil.which("g++")), *flags.split()]
        command += [f"-isystem{folder / 'include'}", str(source), "-o", str(library)]
        command += [f"-L{folder / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{folder / 'lib'}"]
        subprocess.run(command, cwd=ROOT, check=True)
    function = getattr(ctypes.CDLL(str(library)), name)
    function.argtypes, function.restype = [ctypes.c_int64] * sizes + [ctypes.c_void_p] * pointers, None
    return function


class EagerStep:
    """One token at a time through a layer of testing.make_mamba2_layer (fp32, width 4, one group)."""

    def __init__(self, layer, state, out):
        p = layer.parameters
        self.weight = p["conv_weight"].t().contiguous()
        self.window = torch.zeros(4, layer.conv_dim)
        self.tensors = (self.weight, p["conv_bias"], p["A"], p["D"], p["dt_bias"], self.window, state, out)
        self.pointers = [tensor.data_ptr() for tensor in self.tensors]
        self.sizes = state.shape

    def __call__(self, xBC, dt):
        _function("eager_mamba2_step", 3, 10)(*self.sizes, xBC.data_ptr(), dt.data_ptr(), *self.pointers)


class EagerMamba1Step:
    """One token at a time through a testing_mamba1.make_mamba1_layer (fp32, dstate 16, one head of B, one of C)."""

    def __init__(self, layer, state, out):
        self.tensors = (*layer.parameters.values(), state, out)  # kept alive
        self.pointers = [tensor.data_ptr() for tensor in self.tensors]
        self.d_inner = state.shape[0]

    def __call__(self, tokens):
        inputs = (tensor.data_ptr() for tensor in tokens.values())
        _function("eager_mamba1_step", 1, 10)(self.d_inner, *inputs, *self.pointers)
