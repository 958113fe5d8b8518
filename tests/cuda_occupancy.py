"""The architectures that the gates are about, and how many blocks of a kernel fit one of their SMs."""

from typing import NamedTuple


class SM(NamedTuple):
    shared: int  # bytes
    threads: int
    blocks: int


ARCHS = {"sm_80": SM(164 * 1024, 2048, 32), "sm_86": SM(100 * 1024, 1536, 16), "sm_90a": SM(228 * 1024, 2048, 32)}
RESERVED = 1024  # bytes of shared memory that go with a block


def most_shared(sm):
    """Bytes that one block may ask for."""
    return sm.shared - RESERVED


def blocks_per_sm(sm, threads, registers, shared):
    """Registers come 256 at a time to a warp, from its quarter of the SM's."""
    warps = -(-threads // 32)
    registers_of_warp = -(-registers * 32 // 256) * 256
    by_registers = 65536 // 4 // registers_of_warp * 4 // warps
    by_shared = sm.shared // (-(-(shared + RESERVED) // 128) * 128)
    return min(by_registers, by_shared, sm.threads // (warps * 32), sm.blocks)
