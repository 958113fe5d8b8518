"""Random calls of every operator (tests/fuzz.py): some here, 10,000 against libraries with AddressSanitizer."""

import subprocess
import sys

import fuzz
import pytest
import sanitized
import torch
from fuzz_arguments import Draw, embed, flat, gathered
from fuzz_case import Op
from fuzz_ops import OPS

from llamba_kernels import ops

pytestmark = pytest.mark.cpu_only  # about the ordinary build and its CPU kernels


def test_some_random_calls():
    accepted, refused = fuzz.fuzz(calls=1500)
    assert sum(accepted.values()) + sum(refused.values()) == 1500
    for op in OPS:
        assert any(name == op.name for name, _ in accepted) and any(name == op.name for name, _ in refused), op.name


def test_every_operator_has_a_case():
    assert {op.name for op in OPS} == set(ops.__all__)


# ---- the fuzzer itself: what it must notice ----


def doubled(x, out):
    """An operator with the faults that `x` asks for."""
    fault = int(x[0])
    if fault == 1:
        raise RuntimeError("doubled: x must be small; got a large one")
    if fault == 2:
        raise ValueError("x is too large")
    if fault == 3:
        out[0] = 5
        raise ValueError("doubled: x must be small; got a large one")
    out.copy_(2 * x)
    if fault == 4:
        out[-1] += 1
    if fault == 5:
        out.as_strided((1,), (1,), out.storage_offset() + len(out)).fill_(0)
    if fault == 6:
        x[-1] = 0
    return out


FAULTS = {
    1: "raised RuntimeError",
    2: "raised no sentence",
    3: "changed memory that is not its to write",
    4: "out is wrong in 1 of 3 elements, first at (2,): 5.0 instead of 4.0",
    5: "changed memory that is not its to write: 2 bytes, the first at 14",
    6: "changed memory that is not its to write: 1 bytes, the first at 11",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault):
    op = Op("doubled", None, lambda x, out: {"out": (2 * x.double(), 0)}, ("out",), ("out",), function=doubled)
    storage = torch.full((4,), float("nan"))
    arguments = dict(x=torch.tensor([float(fault), 1.0, 2.0]), out=storage[:3])
    with pytest.raises(fuzz.Violation) as violation:
        fuzz.check_call(op, arguments, is_valid=False)
    assert str(violation.value).startswith(FAULTS[fault])
    assert fuzz.check_call(op, dict(x=torch.zeros(3), out=storage[:3]), is_valid=True)


def negated(tensors, which):
    for tensor in tensors[:which]:
        tensor.neg_()
    if which == 3:
        tensors[1].as_strided((1,), (1,), tensors[1].storage_offset() + 2).fill_(0)


def test_faults_in_lists_are_noticed():
    op = Op(
        "negated",
        None,
        lambda tensors, which: {f"tensors[{i}]": (-tensor, 0) for i, tensor in enumerate(tensors)},
        ("tensors",),
        function=negated,
    )
    for which, fault in (1, "tensors[1]: 2 of 2 elements differ"), (3, "changed memory that is not its to write"):
        arguments = flat(dict(tensors=[torch.ones(2), torch.ones(3)[:2]], which=which))
        assert list(arguments) == ["tensors[0]", "tensors[1]", "which"]
        with pytest.raises(fuzz.Violation) as violation:
            fuzz.check_call(op, arguments, is_valid=True)
        assert str(violation.value).startswith(fault)
    assert fuzz.check_call(op, arguments | {"which": 2}, is_valid=True)
    assert gathered(flat(dict(tensors=[], which=2))) == dict(tensors=[], which=2)


def test_an_output_in_an_inputs_memory_is_noticed():
    op = Op("doubled", None, lambda x, out: {"out": (2 * x, 0)}, ("out",), ("out",), function=lambda x, out: out)
    storage = torch.zeros(4)
    with pytest.raises(fuzz.Violation, match="^accepted out in the memory of x$"):
        fuzz.check_call(op, dict(x=storage[:2], out=storage[1:3]), is_valid=False)
    assert fuzz.check_call(op, dict(x=storage[:2], out=storage[2:]), is_valid=True)


def test_embedded_values_lie_among_traps():
    for seed in range(50):
        tensor = embed(torch.ones(2, 3), Draw(seed))
        memory = fuzz.memory_of(tensor).view(torch.float32)
        assert tensor.stride(1) == 1 and bool((tensor == 1).all())
        assert int((memory == 1).sum()) == 6 and int(memory.isnan().sum()) == len(memory) - 6


# ---- AddressSanitizer ----


@pytest.mark.slow
def test_ten_thousand_calls_with_address_sanitizer():
    sanitized.runtime()
    library = sanitized.build()
    command = [sys.executable, "tests/fuzz.py", "--calls", "10000"]
    result = subprocess.run(
        command, cwd=sanitized.ROOT, env=sanitized.environment(library), capture_output=True, text=True
    )
    print(result.stdout, result.stderr[-8000:])
    assert result.returncode == 0
    first, *table, last = result.stdout.splitlines()
    assert first.startswith(f"{library / 'llamba_kernels' / '__init__.py'}, ")
    assert table[-1].split()[:2] == ["all", "10000"] and last.endswith("no violation")
