"""For tests/fuzz.py: what a case says of an operator, and what the cases share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llamba_kernels import ops

FLOATING = (torch.float32, torch.bfloat16, torch.float16)
ROUNDING = 2.0**-24  # of one fp32 operation
NAN = float("nan")


@dataclass(frozen=True)
class Op:
    name: str
    draw: Callable  # draw(random) -> arguments by name, dense
    # expect(**arguments) -> {name: (value, tolerance)} of everything written, from arguments that are its own to
    # change; the int 0 means the same bits, 0.0 the same values. It raises for what the operator must not accept. An
    # element of a list of tensors is a name of its own, k_caches[0].
    expect: Callable
    written: tuple[str, ...]  # arguments; of a list every element
    returns: tuple[str, ...] = ()  # what the call returns, by the names of expect
    any_strides: tuple[str, ...] = ()  # arguments whose last stride need not be 1
    in_place: tuple[str, ...] = ()  # arguments that out may be
    copied: tuple[str, ...] = ()  # arguments that may lie in what is written, because the wrapper reads a copy
    mutations: tuple[Callable, ...] = ()  # f(arguments, draw) -> what it did or None: rules that tie arguments together
    function: Callable | None = None  # ops.<name> if None

    def call(self, arguments):
        result = (self.function or getattr(ops, self.name))(**arguments)
        return dict(zip(self.returns, result if len(self.returns) > 1 else (result,), strict=False))


def rows_shape(draw):
    """The leading dimensions of a tensor of one to three."""
    return draw.choice(((), (draw.size(0, 33),), (draw.size(0, 3), draw.size(0, 9))))


def require(condition, rule):
    if not condition:
        raise ValueError(f"the operator's contract says: {rule}")


def stored(value, dtype):
    """The error of rounding once to dtype: absolute below its normal numbers (fp32's, where the kernels end), and any
    where the largest number is near.
    """
    info = torch.finfo(dtype)
    error = info.eps / 2 * value.abs() + max(info.eps * info.tiny, 2.0**-126)
    return error.where(value.abs() < info.max / 2, torch.inf)
