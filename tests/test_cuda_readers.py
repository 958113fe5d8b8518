"""The readers behind tests/cuda_gates.py and cuda_sass.py, on literal excerpts; blocks per SM."""

import struct

import pytest
from cuda_build import Launch, Usage, read_launches, read_ptxas, short_name
from cuda_occupancy import ARCHS, blocks_per_sm
from cuda_sass import is_instruction, read_code, read_instructions

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
SASS = """
.target\tsm_90a

        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
.L_x_0:
        /*0020*/             @!UP1 UBLKCP.S.G [UR4], [UR6], UR8 ;
        /*11230*/                  LDC R1, c[0x0][0x28] ;
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


def test_launches_are_read_once_each():
    lines = [f"{MANGLED} 128 64", f"{MANGLED} 128 64", f"{MANGLED} 128 65"]
    assert read_launches(lines) == {Launch(SCAN, 128, 64), Launch(SCAN, 128, 65)}


def test_sass_is_read_with_predicates_and_modifiers():
    assert read_instructions(SASS) == ["LDC", "LDG.E.128.CONSTANT", "UBLKCP.S.G", "LDC"]


def test_code_is_read_from_the_sections_of_kernels():
    names, code = b"\0.names\0.text.scan\0.text.copy\0", b"sixteen bytes...thirty-two bytes of another one.."
    sections = [(1, len(code) + 64, len(names)), (8, 64, 16), (19, 80, 33)]  # name, offset, bytes
    headers = b"".join(struct.pack("<I20xQQ24x", *section) for section in sections)
    start = struct.pack("<40xQ10xHHH", 64 + len(code) + len(names), 64, len(sections), 0)
    assert read_code(start + code + names + headers) == {"scan": code[:16], "copy": code[16:49]}


def test_instructions_match_by_opcode_and_modifiers():
    assert is_instruction("LDG.128", "LDG.E.128.CONSTANT") and is_instruction("LDG", "LDG.E")
    assert not is_instruction("LD", "LDG.E") and not is_instruction("LDG.128", "LDG.E.64")


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
