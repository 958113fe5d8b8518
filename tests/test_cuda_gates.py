"""What the CUDA kernels were compiled to: no local memory, the committed registers and shared memory, the instructions
that matter; and the rules behind that. Their readers: test_cuda_readers.py."""

import pytest
from cuda_build import PTXAS_LOG, ROOT, Launch, Usage, read_ptxas, run_launchers
from cuda_gates import (
    LEAST_BLOCKS,
    TABLE,
    Row,
    block_problems,
    launch_problems,
    make_table,
    read_table,
    register_problems,
    table_text,
)
from cuda_occupancy import ARCHS
from cuda_sass import FACTS, Fact, find_cuobjdump, read_sass, sass_problems

needs_kernels = pytest.mark.skipif(not PTXAS_LOG.exists(), reason="no CUDA kernels were built from this folder")


@pytest.fixture(scope="module")
def built():
    return read_ptxas(PTXAS_LOG.read_text())


def assert_none(problems):
    assert problems == [], "\n".join(["", *problems])


# ---- this build ----


@needs_kernels
def test_kernels_keep_everything_in_registers_and_dynamic_shared_memory(built):
    _, usage = built
    assert usage
    assert {kernel: one for kernel, one in usage.items() if one != Usage(one.registers, 0, 0, 0, 0)} == {}


@needs_kernels
def test_launches_are_as_committed(built):
    _, shape, table = read_table(TABLE.read_text())
    launched_shape, launches = run_launchers()
    assert launched_shape == shape
    assert_none(launch_problems(table, built[1], launches))


@needs_kernels
def test_registers_are_as_committed(built):
    committed, _, table = read_table(TABLE.read_text())
    version, usage = built
    if version != committed:
        pytest.skip(f"{TABLE.name} has the registers of nvcc {committed}; this build has those of {version}")
    assert_none(register_problems(table, usage))


def test_committed_table_is_consistent_and_as_written():
    text = TABLE.read_text()
    version, shape, table = read_table(text)
    assert table_text(version, shape, table) == text
    assert_none(block_problems(table, LEAST_BLOCKS))


@needs_kernels
@pytest.mark.skipif(not find_cuobjdump(), reason="cuobjdump is not installed (pip install nvidia-cuda-cuobjdump)")
def test_instructions_that_matter(built):
    sass = read_sass(find_cuobjdump(), ROOT / "build" / "native" / "libllamba_cuda.so")
    assert sass.keys() == built[1].keys()
    assert_none(sass_problems(sass, FACTS))


# ---- the rules ----

SCAN, TREE = Launch("scan", 128, 4096), Launch("scan", 256, 0)
USAGE = {("scan", arch): Usage(registers, 0, 0, 0, 0) for arch, registers in zip(ARCHS, (83, 83, 90), strict=True)}
LAUNCHES = {SCAN: set(ARCHS), TREE: {"sm_90a"}}
COMMITTED = {SCAN: Row((83, 83, 90), (5, 5, 5)), TREE: Row((None, None, 90), (None, None, 2))}


def test_a_table_is_read_as_it_was_written():
    table = make_table(USAGE, LAUNCHES)
    assert table == COMMITTED
    table[Launch("scan<bfloat16, float, 64>", 32, 0)] = table[TREE]
    assert read_table(table_text("13.0.88", "batch 1: one", table)) == ("13.0.88", "batch 1: one", table)


def test_more_registers_are_refused_and_far_fewer_too():
    def change(registers, arch="sm_86"):
        return register_problems(COMMITTED, USAGE | {("scan", arch): Usage(registers, 0, 0, 0, 0)})

    assert change(83) == change(79) == change(200, "sm_120") == []
    assert change(84) == ["scan: registers on sm_86 must be 79 to 83; got 84"]
    assert change(78) == ["scan: registers on sm_86 must be 79 to 83; got 78"]
    assert change(91, "sm_90a") == ["scan: registers on sm_90a must be 86 to 90; got 91"]
    one = {("scan", "sm_90a"): USAGE["scan", "sm_90a"]}
    assert register_problems(COMMITTED, one) == []  # a build for one architecture


def test_launches_must_be_as_committed():
    assert launch_problems(COMMITTED, USAGE, LAUNCHES) == []
    assert launch_problems(COMMITTED, USAGE, LAUNCHES | {TREE: {"sm_80", "sm_90a"}}) == [
        "scan: launches with 256 threads and 0 shared bytes must be on sm_90a, as committed; got sm_80, sm_90a"
    ]
    assert launch_problems({SCAN: COMMITTED[SCAN]}, USAGE, LAUNCHES) == [
        "scan: launches with 256 threads and 0 shared bytes must be on none, as committed; got sm_90a"
    ]
    assert launch_problems(COMMITTED, USAGE, {SCAN: set(ARCHS)}) == [
        "scan: launches with 256 threads and 0 shared bytes must be on sm_90a, as committed; got none"
    ]


def test_a_kernel_must_be_launched_where_it_is_not_empty():
    empty = USAGE | {("scan", "sm_80"): Usage(4, 0, 0, 0, 0)}
    newer = {TREE: COMMITTED[TREE]}, {TREE: {"sm_90a"}}
    sentence = "scan: cuda_launches*.cpp must launch every kernel on {}; got no launch"
    assert launch_problems(newer[0], USAGE, newer[1]) == [sentence.format("sm_80"), sentence.format("sm_86")]
    assert launch_problems(newer[0], empty, newer[1]) == [sentence.format("sm_86")]
    assert launch_problems(COMMITTED, empty, LAUNCHES) == [
        "scan: a kernel that is launched on sm_80 must do something; got an empty one"
    ]


def test_blocks_must_be_those_of_the_row_and_enough():
    assert block_problems(COMMITTED, {"*": 2}) == []
    few = [f"scan: blocks of 128 threads per SM on {arch} must be at least 6; got 5" for arch in ARCHS]
    few.append("scan: blocks of 256 threads per SM on sm_90a must be at least 6; got 2")
    assert block_problems(COMMITTED, {"sc*": 6, "*": 2}) == few
    assert block_problems(COMMITTED, {"scatter": 6, "*": 2}) == []
    edited = {SCAN: Row((83, 83, 90), (5, 6, 5))}
    assert block_problems(edited, {"*": 2}) == [
        "scan: blocks of 128 threads per SM on sm_86 must be 5, which its row allows; got 6"
    ]


def test_facts_that_do_not_hold_are_named():
    sass = {("scan", "sm_80"): {"LDG.E.64", "STL.64"}, ("scan", "sm_90a"): {"UBLKCP.S.G", "LDG.E.128"}}
    assert sass_problems(sass, [Fact("*", "sm_90a", ("LDG.128", "UBLKCP"), ("LDL", "STL"))]) == []
    assert sass_problems(sass, [Fact("s*n", "sm_8*", ("LDG.128",), ("LDL", "STL"))]) == [
        "scan: instructions on sm_80 must include LDG.128; got none",
        "scan: instructions on sm_80 must not include STL; got STL.64",
    ]
    assert sass_problems(sass, [Fact("copy", "sm_86")]) == []  # nothing was built for it
    assert sass_problems(sass, [Fact("copy", "sm_8*")]) == ["copy: a fact for sm_8* must be about a kernel; got none"]
