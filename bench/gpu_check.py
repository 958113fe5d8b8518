"""How far a result is from its float64 reference, as a multiple of what is allowed."""

import math

import torch

# Largest error over largest value, against the float64 reference. A 16-bit y or checkpoint is rounded once and carries
# the error of operands rounded to that dtype; float32 is what the closed form's sums of split operands leave.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}

FLIPPED = 0.05  # share of a checkpoint's elements that may miss the tolerance of its own dtype


def relative_errors(actual, expected):
    """Of every element, over the reference's largest value."""
    expected = expected.double()
    return (actual.double() - expected).abs() / expected.abs().max()


def error_ratio(actual, expected, tolerance=None):
    """The largest error over what is allowed; inf if there is a NaN."""
    ratio = (relative_errors(actual, expected).max() / (tolerance or TOLERANCE[actual.dtype])).item()
    return math.inf if math.isnan(ratio) else ratio


def checkpoint_ratios(actual, expected, activations):
    """Of a stored checkpoint, whose dtype may be finer than that of the activations.

    Operator and reference both round the convolution's outputs to the activations' dtype. Their sums differ in the last
    bits, so a few outputs round the other way, and each moves a row or a column of the state by dt x B times that
    rounding. A few elements may err by as much, then; all others must be as close as the checkpoint's own dtype lets
    them.
    """
    own = TOLERANCE[actual.dtype]
    beyond = (relative_errors(actual, expected) > own).double().mean().item()
    return {
        "checkpoint": error_ratio(actual, expected, max(own, TOLERANCE[activations])),
        "share of the checkpoint beyond its dtype's tolerance": beyond / FLIPPED,
    }


def worst(several):
    """The largest ratio under each name."""
    return {name: max(ratios[name] for ratios in several) for name in several[0]}


def readable(ratios):
    """For a JSON file: three digits; None where a result was not a number."""
    return {name: float(f"{ratio:.3g}") if math.isfinite(ratio) else None for name, ratio in ratios.items()}


def require_close(contender, ratios):
    wrong = [f"{name} ({ratio:.3g} times)" for name, ratio in ratios.items() if ratio > 1]
    if wrong:
        raise AssertionError(f"{contender} must be within tolerance of the reference; beyond it: {', '.join(wrong)}")
