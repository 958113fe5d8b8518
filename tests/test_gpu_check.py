"""The check before the clock: what a rounding may do to a result passes, a wrong result does not."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from gpu_check import checkpoint_ratios, error_ratio, readable, require_close, worst

pytestmark = pytest.mark.cpu_only

SHARE = "share of the checkpoint beyond its dtype's tolerance"


def state(flip=False):
    """(8, 64, 128), the start decayed plus dt x B of four tokens; flip: a few bf16 x and B round the other way."""
    generator = torch.Generator().manual_seed(1)
    total = 0.9 * torch.randn(8, 64, 128, generator=generator, dtype=torch.float64)
    for t in range(4):
        x, B = (torch.randn(shape, generator=generator).bfloat16() for shape in ((8, 64, 1), (128,)))
        if flip and t < 2:
            for tensor, largest in ((x[0], x[0].abs().argmax()), (B, B.abs().argmax())):
                tensor.view(torch.int16).view(-1)[largest] += 1
        total += 0.1 * x.double() * B.double()
    return total


def changed(fault):
    wrong = state()
    if fault == "a wrong row":
        wrong[3, 5] = wrong[3, 5].roll(1)
    elif fault == "a head not written":
        wrong[7] = math.nan
    else:
        wrong *= 1.001
    return wrong


def test_a_rounding_that_falls_the_other_way_passes():
    expected, actual = state(), state(flip=True).float()
    assert error_ratio(actual, expected) > 2  # beyond what a float32 checkpoint allows
    ratios = checkpoint_ratios(actual, expected, torch.bfloat16)
    assert 0 < ratios["checkpoint"] < 1 and 0 < ratios[SHARE] < 1
    require_close("ours", ratios)
    with pytest.raises(AssertionError, match="^ours must be within tolerance of the reference; beyond it: checkpoint "):
        require_close("ours", checkpoint_ratios(actual, expected, torch.float32))


@pytest.mark.parametrize(
    "fault, name",
    [("a wrong row", "checkpoint"), ("a head not written", "checkpoint"), ("wrong by a thousandth", SHARE)],
)
def test_a_wrong_state_fails(fault, name):
    ratios = checkpoint_ratios(changed(fault).float(), state(), torch.bfloat16)
    assert [each for each, ratio in ratios.items() if ratio > 1] == [name]
    with pytest.raises(AssertionError, match=f"beyond it: {name} \\("):
        require_close("ours", ratios)


def test_an_error_is_a_multiple_of_what_its_dtype_allows():
    expected = torch.tensor([-4.0, 1.0], dtype=torch.float64)
    assert error_ratio(torch.tensor([-4.0, 1.0002]), expected) == pytest.approx(0.5, rel=1e-3)
    assert error_ratio(torch.tensor([-4.0, 1.125]).bfloat16(), expected) == pytest.approx(3.125)
    assert error_ratio(torch.tensor([-4.0, 1.125]).bfloat16(), expected, tolerance=0.125) == pytest.approx(0.25)


def test_ratios_in_a_file():
    ratios = worst([{"y": 0.25, "checkpoint": 3.14159}, {"y": math.inf, "checkpoint": 1.0}])
    assert readable(ratios) == {"y": None, "checkpoint": 3.14}
