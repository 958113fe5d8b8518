"""csrc/kernels.txt, the committed table of what every CUDA kernel takes, and what a build must have to agree with it.

    python tests/cuda_gates.py --write      after a build with nvcc: writes the table anew

Registers are ptxas's own words, in build/ptxas.log. Threads and shared memory are what the launchers ask for:
tests/cuda_launches.cpp calls every llamba_<op>_cuda at a reference shape, linked with the objects of libllamba_cuda.so
and, in NVIDIA's place, with the runtime of tests/cuda_runtime.cpp, which prints each launch and needs no GPU.

A new kernel: add the call that launches it, one for each instantiation, to cuda_launches*.cpp, and to cuda_sass.py what
its instructions must be, if that matters; then build and --write. Refused: a kernel that no call launches, unless it is
empty on that architecture, and one of which fewer than LEAST_BLOCKS fit an SM.
"""

import sys
from fnmatch import fnmatchcase
from typing import NamedTuple

from cuda_build import PTXAS_LOG, ROOT, Launch, read_ptxas, run_launchers
from cuda_occupancy import ARCHS, blocks_per_sm

TABLE = ROOT / "csrc" / "kernels.txt"
SLACK = 4  # a kernel may use so many registers fewer than the table says; beyond that the table is to be written anew
EMPTY = 4  # registers of a kernel that does nothing
LEAST_BLOCKS = {  # of a kernel, on one SM; the first pattern that fits its name counts
    "*": 2,
}


class Row(NamedTuple):
    registers: tuple  # of a thread, on each of ARCHS; None where no call launches the kernel like this
    blocks: tuple  # that fit one SM, of each of ARCHS; or None


COLUMNS = ["threads", "shared", "registers: 80", "86", "90a", "blocks: 80", "86", "90a"]
HEADER = """\
# Written by `python tests/cuda_gates.py --write`. A row for each way in which a kernel is launched: the threads and the
# dynamic shared bytes of a block; on sm_80, sm_86 and sm_90a the registers of a thread and the blocks that fit one SM.
# -: no call launches it so there. Rows of a Mamba kernel: batch 1 and more, chains and trees, types of checkpoints.
# nvcc {version}
# shape: {shape}
"""


def make_table(usage, launches):
    """{Launch: Row} of a build for all of ARCHS."""
    table = {}
    for launch, archs in sorted(launches.items()):
        registers = tuple(usage[launch.kernel, arch].registers if arch in archs else None for arch in ARCHS)
        table[launch] = Row(registers, blocks_that_fit(launch, registers))
    return table


def blocks_that_fit(launch, registers):
    limits = zip(ARCHS.values(), registers, strict=True)
    return tuple(None if r is None else blocks_per_sm(sm, launch.threads, r, launch.shared) for sm, r in limits)


def table_text(version, shape, table):
    width = max(len(launch.kernel) for launch in table)
    lines = ["  ".join(["kernel".ljust(width), *COLUMNS])]
    for (kernel, *launch), row in table.items():
        cells = ("-" if number is None else str(number) for number in (*launch, *row.registers, *row.blocks))
        cells = (cell.rjust(len(column)) for cell, column in zip(cells, COLUMNS, strict=True))
        lines.append("  ".join([kernel.ljust(width), *cells]))
    return HEADER.format(version=version, shape=shape) + "\n".join(lines) + "\n"


def read_table(text):
    """nvcc's version, the reference shapes and {Launch: Row}."""
    _, _, _, version, shape, _, *lines = text.splitlines()
    table = {}
    for line in lines:
        kernel, *cells = line.rsplit(maxsplit=len(COLUMNS))
        threads, shared, *numbers = (None if cell == "-" else int(cell) for cell in cells)
        table[Launch(kernel.rstrip(), threads, shared)] = Row(
            tuple(numbers[: len(ARCHS)]), tuple(numbers[len(ARCHS) :])
        )
    return version.split()[-1], shape.partition(": ")[2], table


def launch_problems(table, usage, launches):
    """One sentence for every kernel and launch that is not as it must be."""
    found = []
    launched = {(launch.kernel, arch) for launch, archs in launches.items() for arch in archs}
    for (name, arch), used in usage.items():
        if arch in ARCHS and (name, arch) not in launched and used.registers > EMPTY:
            found.append(f"{name}: cuda_launches*.cpp must launch every kernel on {arch}; got no launch")
        if (name, arch) in launched and used.registers <= EMPTY:
            found.append(f"{name}: a kernel that is launched on {arch} must do something; got an empty one")
    for launch in table.keys() | launches.keys():
        registers = table[launch].registers if launch in table else ()
        committed = {arch for arch, most in zip(ARCHS, registers, strict=False) if most is not None}
        if launches.get(launch, set()) != committed:
            committed, got = (", ".join(sorted(archs)) or "none" for archs in (committed, launches.get(launch, set())))
            found.append(
                f"{launch.kernel}: launches with {launch.threads} threads and {launch.shared} shared bytes must be on "
                f"{committed}, as committed; got {got}"
            )
    return sorted(found)


def block_problems(table, least_blocks):
    """One sentence for every number of blocks that is too small, or not what the rest of its row allows."""
    found = []
    for launch, row in table.items():
        least = next(number for pattern, number in least_blocks.items() if fnmatchcase(launch.kernel, pattern))
        fitting = blocks_that_fit(launch, row.registers)
        for arch, blocks, fit in zip(ARCHS, row.blocks, fitting, strict=True):
            name = f"{launch.kernel}: blocks of {launch.threads} threads per SM on {arch}"
            if blocks != fit:
                found.append(f"{name} must be {fit}, which its row allows; got {blocks}")
            if fit is not None and fit < least:
                found.append(f"{name} must be at least {least}; got {fit}")
    return found


def register_problems(table, usage):
    """One sentence for every kernel and architecture with more registers than committed, or with far fewer."""
    found = set()
    for launch, row in table.items():
        for arch, most in zip(ARCHS, row.registers, strict=True):
            if most is None or (launch.kernel, arch) not in usage:
                continue
            got = usage[launch.kernel, arch].registers
            if not most - SLACK <= got <= most:
                found.add(f"{launch.kernel}: registers on {arch} must be {most - SLACK} to {most}; got {got}")
    return sorted(found)


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
