"""Comparisons and memory traps shared by the operators' tests."""

from contextlib import contextmanager

import pytest
import torch

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_bitwise(actual, expected):
    """Same shape, dtype and bits (so +0 differs from -0, and a NaN equals the same NaN)."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    bits = _BITS[actual.element_size()]
    wrong = (actual.contiguous().view(bits) != expected.contiguous().view(bits)).nonzero()
    if len(wrong):
        first = tuple(wrong[0].tolist())
        raise AssertionError(
            f"{len(wrong)} of {actual.numel()} elements differ; first at {first}: "
            f"{actual[first].item()!r} instead of {expected[first].item()!r}"
        )


def assert_close_to_ref(actual, reference, torch_result):
    """The error against the fp64 reference is at most twice that of PyTorch at the same dtypes.

    To that comes one unit in the last place of the largest value: on a few elements PyTorch may be right by luck.
    """
    assert actual.shape == reference.shape == torch_result.shape
    reference = reference.double()
    error = (actual.double() - reference).abs().max().item()
    torch_error = (torch_result.double() - reference).abs().max().item()
    allowed = 2 * torch_error + torch.finfo(actual.dtype).eps * reference.abs().max().item()
    assert error <= allowed, f"error {error:.3g} is above {allowed:.3g}; PyTorch's is {torch_error:.3g}"


class Surrounded:
    """A tensor's values inside a larger storage that is otherwise `fill`; only the last stride is 1."""

    def __init__(self, tensor, fill=float("nan")):
        self.fill = fill
        self.whole = torch.full([size + 3 for size in tensor.shape], fill, dtype=tensor.dtype)
        self.inner = self.whole[tuple(slice(1, 1 + size) for size in tensor.shape)]
        self.inner.copy_(tensor)

    def assert_surroundings_untouched(self):
        around = self.whole.clone()
        around[tuple(slice(1, 1 + size) for size in self.inner.shape)] = self.fill
        assert_bitwise(around, torch.full_like(around, self.fill))


def sliced(tensor):
    """The same values as a view of a larger tensor, all else of which is NaN (integers: a wild value)."""
    return Surrounded(tensor, float("nan") if tensor.is_floating_point() else 2**31 - 1).inner


def assert_refused(kind, sentence, function, *args, **kwargs):
    """The call raises exactly `kind` with exactly the sentence."""
    with pytest.raises(kind) as error:
        function(*args, **kwargs)
    assert type(error.value) is kind and str(error.value) == sentence


@contextmanager
def threads(count):
    """torch's thread pool has `count` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
