"""csrc/kernels.txt, the committed table of what every CUDA kernel takes, and what a build must have to agree with it.

    python tests/cuda_gates.py --write      after a build with nvcc: writes the table anew

Registers are ptxas's own words, in build/ptxas.log. Threads and shared memory are what the launchers ask for:
tests/cuda_launches.cpp calls every llamba_<op>_cuda at a reference shape, linked with the objects of libllamba_cuda.so
and, in NVIDIA's place, with the runtime of tests/cuda_runtime.cpp, which prints each launch and needs no GPU.

A new kernel: add the call that launches it, one for each instantiation, to cuda_launches*.cpp, and to cuda_sass.py what
its instructions must be, if that matters; then build and --write. Refused: a kernel that no call launches, one that two
calls launch differently, and one of which fewer than LEAST_BLOCKS fit an SM.
"""

import sys
from fnmatch import fnmatchcase
from typing import NamedTuple

from cuda_build import PTXAS_LOG, ROOT, read_ptxas, run_launchers

TABLE = ROOT / "csrc" / "kernels.txt"
SLACK = 4  # a kernel may use so many registers fewer than the table says; beyond that the table is to be written anew
LEAST_BLOCKS = {"*": 2}  # of a kernel, on one SM; the first pattern that fits its name counts


class SM(NamedTuple):
    shared: int  # bytes
    threads: int
    blocks: int


class Row(NamedTuple):
    threads: int  # of a block
    shared: int  # bytes of a block
    registers: tuple  # of a thread, on each of ARCHS
    blocks: tuple  # that fit one SM, of each of ARCHS


ARCHS = {"sm_80": SM(164 * 1024, 2048, 32), "sm_86": SM(100 * 1024, 1536, 16), "sm_90a": SM(228 * 1024, 2048, 32)}
COLUMNS = ["threads", "shared", "registers: 80", "86", "90a", "blocks: 80", "86", "90a"]
HEADER = """\
# Written by `python tests/cuda_gates.py --write`. Threads and shared bytes of a block, registers of a thread and blocks
# that fit one SM, the last two on sm_80, sm_86 and sm_90a.
# nvcc {version}
# shape: {shape}
"""


def blocks_per_sm(sm, threads, registers, shared):
    """Registers come 256 at a time to a warp, from its quarter of the SM's; 1 KB of shared memory goes with a block."""
    warps = -(-threads // 32)
    registers_of_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // 4 // registers_of_warp * 4 // warps
    by_shared = sm.shared // (-(-(shared + 1024) // 128) * 128)
    return min(by_registers, by_shared, sm.threads // (warps * 32), sm.blocks)


def make_table(usage, launches):
    """{kernel: Row} of a build for all of ARCHS."""
    table = {}
    for kernel, (threads, shared) in sorted(launches.items()):
        registers = tuple(usage[kernel, arch].registers for arch in ARCHS)
        limits = zip(ARCHS.values(), registers, strict=True)
        table[kernel] = Row(
            threads, shared, registers, tuple(blocks_per_sm(sm, threads, r, shared) for sm, r in limits)
        )
    return table


def table_text(version, shape, table):
    width = max(map(len, table))
    lines = ["  ".join(["kernel".ljust(width), *COLUMNS])]
    for kernel, row in table.items():
        numbers = (row.threads, row.shared, *row.registers, *row.blocks)
        cells = (str(number).rjust(len(column)) for number, column in zip(numbers, COLUMNS, strict=True))
        lines.append("  ".join([kernel.ljust(width), *cells]))
    return HEADER.format(version=version, shape=shape) + "\n".join(lines) + "\n"


def read_table(text):
    """nvcc's version, the reference shape and {kernel: Row}."""
    _, _, version, shape, _, *lines = text.splitlines()
    table = {}
    for line in lines:
        kernel, *cells = line.rsplit(maxsplit=len(COLUMNS))
        threads, shared, *numbers = map(int, cells)
        table[kernel] = Row(threads, shared, tuple(numbers[: len(ARCHS)]), tuple(numbers[len(ARCHS) :]))
    return version.split()[-1], shape.partition(": ")[2], table


def launch_problems(table, usage, launches):
    """One sentence for every kernel, row and launch that lacks the others or is not as committed."""
    kernels = {kernel for kernel, _ in usage}
    found = [f"{name}: a kernel must have a row in {TABLE.name}; got none" for name in kernels - table.keys()]
    found += [f"{name}: a row of {TABLE.name} must have a kernel; got none" for name in table.keys() - kernels]
    found += [
        f"{name}: cuda_launches.cpp must launch every kernel; got no launch" for name in kernels - launches.keys()
    ]
    for name in table.keys() & launches.keys():
        if launches[name] != table[name][:2]:
            found.append(
                f"{name}: threads and shared bytes must be {table[name][:2]}, as committed; got {launches[name]}"
            )
    return sorted(found)


def block_problems(table, least_blocks):
    """One sentence for every number of blocks that is too small, or not what the rest of its row allows."""
    found = []
    for name, row in table.items():
        least = next(number for pattern, number in least_blocks.items() if fnmatchcase(name, pattern))
        for arch, registers, blocks in zip(ARCHS, row.registers, row.blocks, strict=True):
            fit = blocks_per_sm(ARCHS[arch], row.threads, registers, row.shared)
            if blocks != fit:
                found.append(f"{name}: blocks per SM on {arch} must be {fit}, which its row allows; got {blocks}")
            if fit < least:
                found.append(f"{name}: blocks per SM on {arch} must be at least {least}; got {fit}")
    return found


def register_problems(table, usage):
    """One sentence for every kernel and architecture with more registers than committed, or with far fewer."""
    found = []
    for (name, arch), used in usage.items():
        if name in table and arch in ARCHS:
            most = table[name].registers[list(ARCHS).index(arch)]
            if not most - SLACK <= used.registers <= most:
                found.append(f"{name}: registers on {arch} must be {most - SLACK} to {most}; got {used.registers}")
    return found


def main():
    version, usage = read_ptxas(PTXAS_LOG.read_text())
    archs = {arch for _, arch in usage}
    if archs != ARCHS.keys():
        raise SystemExit(f"{TABLE.name}: the build must be for {', '.join(ARCHS)}; got {', '.join(sorted(archs))}")
    shape, launches = run_launchers()
    text = table_text(version, shape, make_table(usage, launches))
    if sys.argv[1:] == ["--write"]:
        TABLE.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
