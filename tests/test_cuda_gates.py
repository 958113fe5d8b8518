"""What the CUDA kernels were compiled to: no local memory, the committed registers and shared memory, the instructions
that matter; and the readers and rules behind that, on literal excerpts."""

import pytest
from cuda_build import PTXAS_LOG, ROOT, Usage, read_launches, read_ptxas, run_launchers, short_name
from cuda_gates import (
    ARCHS,
    LEAST_BLOCKS,
    TABLE,
    Row,
    block_problems,
    blocks_per_sm,
    launch_problems,
    make_table,
    read_table,
    register_problems,
    table_text,
)
from cuda_sass import FACTS, Fact, dump, find_cuobjdump, is_instruction, read_sass, sass_problems

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
    sass = read_sass(dump(find_cuobjdump(), ROOT / "build" / "native" / "libllamba_cuda.so"))
    assert sass.keys() == built[1].keys()
    assert_none(sass_problems(sass, FACTS))


# ---- the readers ----

MANGLED = (
    "_ZN6llamba36_GLOBAL__N__9e609c31_4_a_cu_0e96eb7e4scanI13__nv_bfloat166__halfLin4ELb1ELNS_4ModeE1EEEvNS_4ArgsE"
)
LOG = f"""nvcc 13.0.88
ptxas info    : Overriding maximum register limit 256 for '{MANGLED}' with  24 of maxrregcount option
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{MANGLED}' for 'sm_80'
ptxas info    : Function properties for {MANGLED}
    400 bytes stack frame, 172 bytes spill stores, 164 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 400 bytes cumulative stack size, 16 bytes smem, 368 bytes cmem[0]
ptxas info    : Compile time = 13.328 ms
ptxas info    : Function properties for _ZN6llamba6helperEPKfi
    8 bytes stack frame, 4 bytes spill stores, 2 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{MANGLED}' for 'sm_90a'
ptxas info    : Function properties for {MANGLED}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 26 registers, used 0 barriers
ptxas info    : Compile time = 5.476 ms
"""
SASS = f"""
Fatbin elf code:
================
arch = sm_90a

\tcode for sm_90a
\t.target\tsm_90a

\t\tFunction : {MANGLED}
\t.headerflags\t@"EF_CUDA_ACCELERATORS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                           /* 0x00000a00ff017b82 */
                                                                                    /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;        /* 0x0000000402007981 */
                                                                                    /* 0x0000a2000c1e1900 */
        /*0020*/             @!UP1 UBLKCP.S.G [UR4], [UR6], UR8 ;                   /* 0x00000004060073ba */
        /*11230*/                  LDC R1, c[0x0][0x28] ;                           /* 0x00000a00ff017b82 */
"""
SCAN = "scan<bfloat16, float16, -4, true, 1>"


def test_ptxas_is_read_with_the_functions_that_a_kernel_calls():
    usage = {(SCAN, "sm_80"): Usage(24, 16, 408, 176, 166), (SCAN, "sm_90a"): Usage(26, 0, 0, 0, 0)}
    assert read_ptxas(LOG) == ("13.0.88", usage)


def test_names_are_short():
    names = {
        "llamba::cursor_commit_kernel(llamba_cursor_commit_args)": "cursor_commit_kernel",
        "void llamba::scan_kernel<float, 64, (unsigned char)2>(llamba::Args<float>)": "scan_kernel<float, 64, 2>",
        "void llamba::(anonymous namespace)::copy_kernel<(llamba::Mode)1>(int)": "copy_kernel<1>",
    }
    assert {name: short_name(name) for name in names} == names


def test_kernels_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"must differ in name.*got \['scan', 'scan'\]"):
        read_launches(["_ZN6llamba4scanEi 128 0", "_ZN6llamba4scanEf 128 0"])


def test_two_launches_of_a_kernel_must_agree():
    assert read_launches([f"{MANGLED} 128 64"] * 2) == {SCAN: (128, 64)}
    with pytest.raises(ValueError, match=r"must be the same .* got \(128, 64\) and \(128, 65\)"):
        read_launches([f"{MANGLED} 128 64", f"{MANGLED} 128 65"])


def test_sass_is_read_with_predicates_and_modifiers():
    assert read_sass(SASS) == {(SCAN, "sm_90a"): {"LDC", "LDG.E.128.CONSTANT", "UBLKCP.S.G"}}


# ---- the rules ----


@pytest.mark.parametrize(
    "arch, threads, registers, shared, blocks",  # as NVIDIA's cuda_occupancy.h has them
    [
        ("sm_80", 128, 8, 0, 16),  # threads
        ("sm_80", 1000, 8, 0, 2),  # threads of whole warps
        ("sm_86", 1024, 8, 0, 1),
        ("sm_80", 32, 8, 0, 32),  # blocks
        ("sm_86", 32, 8, 0, 16),
        ("sm_80", 128, 83, 0, 5),  # registers
        ("sm_80", 96, 83, 0, 6),  # a warp's are all of one quarter: 20 warps, not 23
        ("sm_80", 288, 230, 0, 0),
        ("sm_80", 128, 8, 82944, 2),  # shared memory
        ("sm_80", 128, 8, 82945, 1),
        ("sm_90a", 128, 8, 16384, 13),
        ("sm_90a", 1024, 59, 232448, 1),
        ("sm_90a", 1024, 59, 232449, 0),
    ],
)
def test_blocks_per_sm(arch, threads, registers, shared, blocks):
    assert blocks_per_sm(ARCHS[arch], threads, registers, shared) == blocks


USAGE = {("scan", arch): Usage(registers, 0, 0, 0, 0) for arch, registers in zip(ARCHS, (83, 83, 90), strict=True)}
TABLE_OF_SCAN = {"scan": Row(128, 4096, (83, 83, 90), (5, 5, 5))}


def test_a_table_is_read_as_it_was_written():
    table = make_table(USAGE, {"scan": (128, 4096)})
    assert table == TABLE_OF_SCAN
    table["scan<bfloat16, float, 64>"] = table["scan"]
    assert read_table(table_text("13.0.88", "batch 1: one", table)) == ("13.0.88", "batch 1: one", table)


def test_more_registers_are_refused_and_far_fewer_too():
    def change(registers, arch="sm_86"):
        return register_problems(TABLE_OF_SCAN, USAGE | {("scan", arch): Usage(registers, 0, 0, 0, 0)})

    assert change(83) == change(79) == change(200, "sm_120") == []
    assert change(84) == ["scan: registers on sm_86 must be 79 to 83; got 84"]
    assert change(78) == ["scan: registers on sm_86 must be 79 to 83; got 78"]


def test_kernels_rows_and_launches_must_be_the_same_set():
    assert launch_problems(TABLE_OF_SCAN, USAGE, {"scan": (128, 4096)}) == []
    assert launch_problems({}, USAGE, {"scan": (128, 4096)}) == [
        "scan: a kernel must have a row in kernels.txt; got none"
    ]
    assert launch_problems(TABLE_OF_SCAN, {}, {}) == ["scan: a row of kernels.txt must have a kernel; got none"]
    assert launch_problems(TABLE_OF_SCAN, USAGE, {}) == [
        "scan: cuda_launches.cpp must launch every kernel; got no launch"
    ]
    assert launch_problems(TABLE_OF_SCAN, USAGE, {"scan": (256, 4096)}) == [
        "scan: threads and shared bytes must be (128, 4096), as committed; got (256, 4096)"
    ]


def test_blocks_must_be_those_of_the_row_and_enough():
    assert block_problems(TABLE_OF_SCAN, {"*": 5}) == []
    few = [f"scan: blocks per SM on {arch} must be at least 6; got 5" for arch in ARCHS]
    assert block_problems(TABLE_OF_SCAN, {"sc*": 6, "*": 2}) == few
    assert block_problems(TABLE_OF_SCAN, {"scatter": 6, "*": 2}) == []
    edited = {"scan": Row(128, 4096, (83, 83, 90), (5, 6, 5))}
    assert block_problems(edited, {"*": 2}) == ["scan: blocks per SM on sm_86 must be 5, which its row allows; got 6"]


def test_instructions_match_by_opcode_and_modifiers():
    assert is_instruction("LDG.128", "LDG.E.128.CONSTANT") and is_instruction("LDG", "LDG.E")
    assert not is_instruction("LD", "LDG.E") and not is_instruction("LDG.128", "LDG.E.64")


def test_facts_that_do_not_hold_are_named():
    sass = {("scan", "sm_80"): {"LDG.E.64", "STL.64"}, ("scan", "sm_90a"): {"UBLKCP.S.G", "LDG.E.128"}}
    assert sass_problems(sass, [Fact("*", "sm_90a", ("LDG.128", "UBLKCP"), ("LDL", "STL"))]) == []
    assert sass_problems(sass, [Fact("s*n", "sm_8*", ("LDG.128",), ("LDL", "STL"))]) == [
        "scan: instructions on sm_80 must include LDG.128; got none",
        "scan: instructions on sm_80 must not include STL; got STL.64",
    ]
    assert sass_problems(sass, [Fact("copy", "sm_86")]) == []  # nothing was built for it
    assert sass_problems(sass, [Fact("copy", "sm_8*")]) == ["copy: a fact for sm_8* must be about a kernel; got none"]
