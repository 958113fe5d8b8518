"""What a seeded fault is: see simt_faults.py."""

from typing import NamedTuple


class Fault(NamedTuple):
    name: str
    file: str  # in csrc
    old: str
    new: str
    tests: str
    how: str
