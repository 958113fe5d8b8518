"""Facts about the machine instructions of the CUDA kernels, and the reading of them with nvdisasm.

An instruction is named by its opcode and those of its modifiers that matter, in any order: LDG.128 is in
LDG.E.128.CONSTANT, and LD is not in LDG.
"""

import importlib.metadata
import itertools
import re
import shutil
import struct
import subprocess
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from cuda_build import short_names


class Fact(NamedTuple):
    kernels: str  # a pattern of short names
    archs: str  # a pattern
    required: tuple = ()  # each is somewhere in each of the kernels
    forbidden: tuple = ()


# The state is nearly all that a step reads: the lanes' loads of it are to be as wide as they go, 16 bytes of a float32
# checkpoint and 8 of a 16-bit one, and not to stay in L1 (NA), where no one reads them again; so are its stores.
STATE = ("LDG.NA.128", "LDG.NA.64", "STG.128", "STG.64")
FACTS = [
    # Local memory: spills and arrays with unknown indices, DRAM traffic that competes with the state's.
    Fact("*", "sm_*", forbidden=("LDL", "STL")),
    # An address of which the compiler does not know the memory: slower, and waits for shared memory's accesses too.
    Fact("*", "sm_*", forbidden=("LD", "ST")),
    # The row table is rebuilt in shared memory.
    Fact("cursor_commit_kernel", "sm_*", required=("BAR.SYNC", "LDS", "STS")),
    # B, C and x of a token come from shared memory four at a time; sums over dstate go through registers, not memory.
    Fact("mamba2_recurrent_kernel<*>", "sm_*", required=(*STATE, "LDS.128", "SHFL.BFLY")),
    # ... and so do dt, dt x, B and C of Mamba-1, whose decays are one instruction each, beside the multiplication.
    Fact("mamba1_kernel<*>", "sm_*", required=(*STATE, "LDS.128", "SHFL.BFLY", "MUFU.EX2")),
    # Taps of two channels are 16 bytes.
    Fact("conv1d_verify_kernel<*>", "sm_*", required=("LDG.128",)),
    # Tensor cores, bfloat16 pieces with float32 sums, two registers of a fragment in each load.
    Fact("mamba2_matmul_kernel<*, false>", "sm_*", required=(*STATE, "HMMA.16816.F32.BF16", "LDS.64")),
    # Hopper: bulk copies bring the state, and barriers in shared memory count their bytes; no lane loads it.
    Fact(
        "mamba2_matmul_kernel<*, true>",
        "sm_90a",
        required=(*STATE[2:], "HMMA.16816.F32.BF16", "LDS.64", "UBLKCP", "SYNCS.ARRIVE", "SYNCS.PHASECHK.TRYWAIT"),
        forbidden=("LDG.NA",),
    ),
    # ... elsewhere it does nothing, and is not launched.
    Fact("mamba2_matmul_kernel<*, true>", "sm_8*", forbidden=("LDG", "STG", "LDS", "STS", "HMMA")),
    # These wait for memory alone: 16 bytes a lane, or a warp has too few bytes under way.
    Fact("*rms_norm_kernel<*>", "sm_*", required=("LDG.128", "STG.128", "SHFL.BFLY")),
    Fact("rope_kernel<*>", "sm_*", required=("LDG.128", "STG.128")),
    Fact("silu_mul_kernel<*>", "sm_*", required=("LDG.128", "STG.128")),
    Fact("slot_copy_kernel", "sm_*", required=("LDG.128", "STG.128")),
    Fact("state_import_kernel<*>", "sm_*", required=("LDG.128", "STG.128")),
    # Reads whole rows of logits; sums in double, as on the CPU, or another token is drawn.
    Fact("speculative_accept_kernel<*>", "sm_*", required=("LDG.128", "DADD", "SHFL")),
]


def find_cuobjdump():
    """That of the PyPI package, which has nvdisasm beside it and need not be on PATH, or the system's; or None."""
    try:
        files = importlib.metadata.files("nvidia-cuda-cuobjdump")
    except importlib.metadata.PackageNotFoundError:
        return shutil.which("cuobjdump")
    return str(next(Path(file.locate()) for file in files if file.name == "cuobjdump"))


def read_sass(cuobjdump, library):
    """{(kernel, arch): set of instructions}, an instruction being its opcode with its modifiers. cuobjdump could also
    disassemble, but it takes three times as long as one nvdisasm for all the code of an architecture.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [cuobjdump, "-xelf", "all", Path(library).resolve()], cwd=folder, check=True, capture_output=True
        )
        code = {}
        for cubin in sorted(Path(folder).glob("*.cubin")):
            code.setdefault(cubin.stem.rpartition(".")[2], {}).update(read_code(cubin.read_bytes()))
        for arch, kernels in code.items():
            if not kernels:
                continue
            raw = Path(folder) / arch
            raw.write_bytes(b"".join(kernels.values()))
            nvdisasm = [Path(cuobjdump).with_name("nvdisasm"), "-ndf", "-b", arch.replace("sm_", "SM"), raw]
            text = subprocess.run(nvdisasm, capture_output=True, text=True, check=True).stdout
            instructions = read_instructions(text)
            if 16 * len(instructions) != raw.stat().st_size:
                raise ValueError(f"{arch}: instructions must be {raw.stat().st_size // 16}; got {len(instructions)}")
            instructions = iter(instructions)
            for kernel, binary in kernels.items():
                found[kernel, arch] = set(itertools.islice(instructions, len(binary) // 16))
    names = short_names(sorted({kernel for kernel, _ in found}))
    return {(names[kernel], arch): instructions for (kernel, arch), instructions in found.items()}


def read_code(cubin):
    """{mangled name: code} of an ELF file's kernels."""
    (headers,) = struct.unpack_from("<Q", cubin, 40)
    size, count, strings = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<I20xQQ", cubin, headers + i * size) for i in range(count)]  # name, offset, bytes
    code = {}
    for name, offset, length in sections:
        name = cubin[sections[strings][1] + name :].partition(b"\0")[0].decode()
        if name.startswith(".text."):
            code[name.removeprefix(".text.")] = cubin[offset : offset + length]
    return code


def read_instructions(text):
    """Of nvdisasm's lines: an offset, perhaps a predicate, the instruction with its modifiers, operands."""
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+ +)?([A-Z][\w.]*)", text, flags=re.MULTILINE)


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
