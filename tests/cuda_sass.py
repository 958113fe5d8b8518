"""Facts about the machine instructions of the CUDA kernels, and the reading of them with cuobjdump.

An instruction is named by its opcode and those of its modifiers that matter, in any order: LDG.128 is in
LDG.E.128.CONSTANT, and LD is not in LDG.
"""

import importlib.metadata
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from cuda_build import short_names


class Fact(NamedTuple):
    kernels: str  # a pattern of short names
    archs: str  # a pattern
    required: tuple = ()  # each is somewhere in each of the kernels
    forbidden: tuple = ()


FACTS = [
    # LDL, STL: local memory. LD, ST: an address of which the compiler does not know the memory.
    Fact("*", "sm_*", forbidden=("LDL", "STL", "LD", "ST")),
    Fact("cursor_commit_kernel", "sm_*", required=("BAR.SYNC", "LDS", "STS")),
]


def find_cuobjdump():
    """That of the PyPI package, which has nvdisasm beside it and need not be on PATH, or the system's; or None."""
    try:
        files = importlib.metadata.files("nvidia-cuda-cuobjdump")
    except importlib.metadata.PackageNotFoundError:
        return shutil.which("cuobjdump")
    return str(next(Path(file.locate()) for file in files if file.name == "cuobjdump"))


def dump(cuobjdump, library):
    return subprocess.run([cuobjdump, "-sass", library], capture_output=True, text=True, check=True).stdout


def read_sass(text):
    """{(kernel, arch): set of instructions}, an instruction being its opcode with its modifiers."""
    found = {}
    for code in re.split(r"^\s*code for ", text, flags=re.MULTILINE)[1:]:
        arch = code.split()[0]
        for function in code.split("Function : ")[1:]:
            # An offset, perhaps a predicate, the instruction; the same line goes on with operands and encoding.
            lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+ +)?([A-Z][\w.]*)", function, flags=re.MULTILINE)
            found[function.split()[0], arch] = set(lines)
    names = short_names(sorted({kernel for kernel, _ in found}))
    return {(names[kernel], arch): instructions for (kernel, arch), instructions in found.items()}


def is_instruction(wanted, instruction):
    opcode, *modifiers = instruction.split(".")
    wanted_opcode, *wanted_modifiers = wanted.split(".")
    return opcode == wanted_opcode and set(wanted_modifiers) <= set(modifiers)


def sass_problems(sass, facts):
    """One sentence for every fact that does not hold, or that is about nothing."""
    found = []
    archs = {arch for _, arch in sass}
    for fact in facts:
        kernels = [key for key in sass if fnmatchcase(key[0], fact.kernels) and fnmatchcase(key[1], fact.archs)]
        if not kernels and any(fnmatchcase(arch, fact.archs) for arch in archs):
            found.append(f"{fact.kernels}: a fact for {fact.archs} must be about a kernel; got none")
        for kernel, arch in kernels:
            for wanted in fact.required + fact.forbidden:
                hits = sorted(one for one in sass[kernel, arch] if is_instruction(wanted, one))
                if wanted in fact.required and not hits:
                    found.append(f"{kernel}: instructions on {arch} must include {wanted}; got none")
                if wanted in fact.forbidden and hits:
                    found.append(f"{kernel}: instructions on {arch} must not include {wanted}; got {', '.join(hits)}")
    return found
