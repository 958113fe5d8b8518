"""Random calls of every operator, half of them damaged: python tests/fuzz.py --calls 10000 --seed 0

A call must do what its reference does, or be refused in one sentence and change nothing; in either case no byte
outside what it writes may change. Ends with a table, or at the first call that breaks this, with the line that repeats
it. Under LLAMBA_SANITIZE=address (README.md, Settings) reads and writes outside an allocation end it, too.
"""

import argparse
import mmap
import os
import re
import sys
import time
import warnings
from collections import Counter

import torch
from fuzz_arguments import Draw, embed, flat, gathered, is_plain, list_name, mutate
from fuzz_ops import OPS
from helpers import assert_bitwise

import llamba_kernels
from llamba_kernels._load import native

VIOLATED = 3  # the child's exit status; AddressSanitizer and Python have 1


class Violation(Exception):
    """The call did something that no call may do."""


def memory_of(value):
    """All bytes of a tensor's storage."""
    return torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())


def storages(arguments):
    """The arguments' storages by address; sparse tensors and other devices are left out."""
    plain = [value.detach() for value in arguments.values() if is_plain(value)]
    return {value.untyped_storage().data_ptr(): memory_of(value) for value in plain}


def bytes_of(value):
    """Which bytes of its storage are the tensor's elements."""
    size = value.element_size()
    elements = torch.zeros(value.untyped_storage().nbytes() // size, dtype=torch.bool)
    elements.as_strided(value.shape, value.stride(), value.storage_offset()).fill_(True)
    mask = elements.repeat_interleave(size)
    return torch.nn.functional.pad(mask, (0, value.untyped_storage().nbytes() - len(mask)))


def check_sentence(op, error):
    text = str(error)
    if type(error) not in (ValueError, TypeError):
        raise Violation(f"raised {type(error).__name__}: {text}")
    if not re.fullmatch(rf"{op.name}: .+ must .+; got .+", text) or re.search(r"\.(cpp|h|py)\b|Exception raised", text):
        raise Violation(f"raised no sentence of the form 'op: argument must rule; got value': {text}")


def check_unchanged(before, after, written=()):
    """Every byte is as before, but for those of the tensors in `written`."""
    for address, memory in after.items():
        may_change = torch.zeros(len(memory), dtype=torch.bool)
        for value in written:
            if value.untyped_storage().data_ptr() == address:
                may_change |= bytes_of(value)
        changed = ((memory != before[address]) & ~may_change).nonzero().flatten()
        if len(changed):
            raise Violation(
                f"changed memory that is not its to write: {len(changed)} bytes, the first at {changed[0].item()}"
            )


def check_values(name, actual, expected):
    value, tolerance = expected
    if actual.shape != value.shape:
        raise Violation(f"{name} has shape {tuple(actual.shape)} instead of {tuple(value.shape)}")
    if actual.dtype == value.dtype and isinstance(tolerance, int):
        try:
            return assert_bitwise(actual, value)
        except AssertionError as error:
            raise Violation(f"{name}: {error}") from None
    actual, value = actual.double(), value.double()
    tolerance = torch.as_tensor(tolerance, dtype=torch.float64).expand(value.shape)
    same = (actual == value) | (actual.isnan() & value.isnan())
    beyond_numbers = ~(value.isfinite() & tolerance.isfinite()) & (tolerance != 0)  # a NaN or infinity was given
    wrong = (~(same | ((actual - value).abs() <= tolerance) | beyond_numbers)).nonzero()
    if len(wrong):
        first = tuple(wrong[0].tolist())
        raise Violation(
            f"{name} is wrong in {len(wrong)} of {actual.numel()} elements, first at {first}: {actual[first].item()!r} "
            f"instead of {value[first].item()!r} +- {tolerance[first].item():.3g}"
        )


def check_apart(op, given):
    """What is written shares no byte with another argument, except that out may be one of op.in_place."""
    plain = {name: value for name, value in given.items() if is_plain(value) and name not in op.copied}
    for name in [name for name in plain if list_name(name) in op.written]:
        value = plain.pop(name)
        for other_name, other in plain.items():
            is_itself = value.data_ptr() == other.data_ptr() and value.shape == other.shape
            if value.untyped_storage().data_ptr() != other.untyped_storage().data_ptr() or (
                is_itself and "out" in (name, other_name) and {name, other_name} & set(op.in_place)
            ):
                continue
            if bool((bytes_of(value) & bytes_of(other)).any()):
                raise Violation(f"accepted {name} in the memory of {other_name}")


def check_call(op, arguments, is_valid):
    """Makes the call with the flat arguments; returns whether it was accepted. is_valid: it must be."""
    given = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    before = {address: memory.clone() for address, memory in storages(given).items()}
    copies = {name: value.detach().clone().resolve_neg() for name, value in given.items()}
    try:
        returned = op.call(gathered(arguments))
    except Exception as error:
        check_sentence(op, error)
        if is_valid:
            raise Violation(f"refused a valid call: {error}") from None
        check_unchanged(before, storages(given))
        return False
    if given and all(value.is_meta for value in given.values()):
        return True  # nothing is computed then
    try:
        expected = op.expect(**gathered(arguments | copies))
    except Exception as error:
        raise Violation(f"accepted what the reference cannot take ({type(error).__name__}: {error})") from None
    check_apart(op, given)
    for name, pair in expected.items():
        if name in returned and name in given and returned[name] is not given[name]:
            raise Violation(f"returned another tensor than the given {name}")
        check_values(name, returned.get(name, arguments.get(name)), pair)
    check_unchanged(before, storages(given), [given[name] for name in given if list_name(name) in op.written])
    return True


def draw_call(seed, index, only=None):
    """The op, its flat arguments, and what was done to them. only: the name of the op to call."""
    draw = Draw(f"{seed}:{index}")
    drawn = draw.choice(OPS)
    op = next((op for op in OPS if op.name == only), drawn)
    arguments = {
        name: embed(value, draw, list_name(name) in op.any_strides) if isinstance(value, torch.Tensor) else value
        for name, value in flat(op.draw(draw)).items()
    }
    sources = [name for name in op.in_place if arguments[name] is not None]
    if sources and draw.random() < 0.2:
        arguments["out"] = arguments[draw.choice(sources)]
    damage = [mutate(arguments, draw, op.mutations) for _ in range(draw.choice((0, 0, 0, 1, 1, 2)))]
    return op, arguments, damage


def describe(value):
    if isinstance(value, torch.Tensor):
        strides = f" strides {tuple(value.stride())}" if value.layout is torch.strided else f" {value.layout}"
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{strides} on {value.device}"
    return repr(value)


def how_to_repeat(seed, index, only):
    return f"python tests/fuzz.py --seed {seed} --first {index} --calls 1" + (f" --op {only}" if only else "")


def fuzz(calls, seed=0, first=0, only=None, starting=lambda index: None):
    """Runs the calls; returns Counters of accepted and refused calls, {(op, dtype or None): count}."""
    warnings.filterwarnings("ignore", message="Casting complex values to real")
    accepted, refused = Counter(), Counter()
    for index in range(first, first + calls):
        starting(index)
        op, arguments, damage = draw_call(seed, index, only)
        try:
            dtype = str(getattr(next(iter(arguments.values())), "dtype", None)).removeprefix("torch.")
            (accepted if check_call(op, arguments, is_valid=not damage) else refused)[op.name, dtype] += 1
        except Violation as violation:
            lines = [f"{op.name} {violation}", f"damage: {'; '.join(damage) or 'none'}"]
            lines += [f"  {name}: {describe(value)}" for name, value in arguments.items()]
            raise Violation("\n".join([*lines, how_to_repeat(seed, index, only)])) from violation.__cause__
    return accepted, refused


def table_text(accepted, refused):
    lines = [f"{'op':20} {'calls':>6} {'accepted':>8} {'refused':>8}   accepted by dtype"]
    for name in [*dict.fromkeys(op.name for op in OPS), None]:
        counts = [sum(n for (op, _), n in counter.items() if name in (op, None)) for counter in (accepted, refused)]
        dtypes = sorted((dtype, n) for (op, dtype), n in accepted.items() if op == name)
        by_dtype = "  ".join(f"{dtype} {n}" for dtype, n in dtypes)
        lines.append(f"{name or 'all':20} {sum(counts):6} {counts[0]:8} {counts[1]:8}   {by_dtype}".rstrip())
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first call")
    parser.add_argument("--op", choices=[op.name for op in OPS], help="every call is one of it")
    options = parser.parse_args()
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty holds NaN: what nobody wrote shows up
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)
    print(f"{llamba_kernels.__file__}, {native.llamba_isa_cpu().decode()} kernels", flush=True)
    # the calls run in a child, so that a crash, too, can be told by the number of the call
    current = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        start = time.monotonic()
        try:
            counters = fuzz(
                options.calls, options.seed, options.first, options.op, lambda index: record(current, index)
            )
        except Violation as violation:
            print(violation, flush=True)
            os._exit(VIOLATED)
        print(f"{table_text(*counters)}\n{time.monotonic() - start:.0f} s, no violation", flush=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, VIOLATED):
        index = int.from_bytes(current[:8], "big")
        print(f"the process ended with status {status}\n{how_to_repeat(options.seed, index, options.op)}")
    return 1 if status else 0


def record(current, index):
    current[:8] = index.to_bytes(8, "big")


if __name__ == "__main__":
    sys.exit(main())
