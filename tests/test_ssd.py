"""The chunked SSD against a loop over tokens: values, gradients, splits."""

import pytest
import torch

from llamba_kernels.models.ssd import ssd_chunked
from python_ref.ssd import ssd_ref

CHUNK = 8
# label: (L, nheads, x_heads, B_heads, C_heads, headdim, dstate); the first row is a small attention-initialised mixer
CASES = {
    "base": (20, 6, 2, 2, 6, 4, 4),
    "no sharing": (20, 6, 6, 6, 6, 4, 4),
    "stock mamba-2 groups": (20, 6, 6, 2, 2, 4, 4),
    "heads that do not nest": (20, 6, 1, 2, 3, 4, 4),
    "headdim differs from dstate": (20, 6, 2, 2, 6, 5, 3),
    "empty": (0, 6, 2, 2, 6, 4, 4),
    "one token": (1, 6, 2, 2, 6, 4, 4),
    "one chunk less one": (7, 6, 2, 2, 6, 4, 4),
    "one chunk": (8, 6, 2, 2, 6, 4, 4),
    "one chunk and one": (9, 6, 2, 2, 6, 4, 4),
}


def make_inputs(length, nheads, x_heads, B_heads, C_heads, headdim, dstate, dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(length + nheads)

    def randn(*shape):
        # every tensor is a slice of a larger one, as the slices of in_proj are
        return torch.randn(*shape[:-1], shape[-1] + 3, dtype=torch.float64, generator=generator)[..., :-3].to(dtype)

    return {
        "x": randn(batch, length, x_heads, headdim),
        "dt": torch.nn.functional.softplus(randn(batch, length, nheads)),
        "A": -torch.exp(randn(nheads)),
        "B": randn(batch, length, B_heads, dstate),
        "C": randn(batch, length, C_heads, dstate),
        "D": randn(nheads),
        "chunk_size": CHUNK,
        "initial_state": randn(batch, nheads, headdim, dstate),
    }


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_loop_in_fp64(case):
    inputs = make_inputs(*case)
    y, state = ssd_chunked(**inputs)
    y_ref, state_ref = ssd_ref(**inputs)
    assert y.shape == y_ref.shape and state.shape == state_ref.shape
    torch.testing.assert_close(y, y_ref, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state, state_ref, rtol=1e-11, atol=1e-11)


def test_fp32_error_is_that_of_an_fp32_loop():
    inputs = make_inputs(*CASES["base"])
    single = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    y, state = ssd_chunked(**single)
    assert y.dtype == state.dtype == torch.float32
    y_ref, state_ref = ssd_ref(**inputs)
    y_loop, state_loop = fp32_loop(**single)
    for ours, loop, ref in ((y, y_loop, y_ref), (state, state_loop, state_ref)):
        limit = 2 * (loop.double() - ref).abs().max() + 1e-7
        assert (ours.double() - ref).abs().max() <= limit


def test_low_precision_inputs_are_summed_in_fp32():
    inputs = {k: v.bfloat16() if isinstance(v, torch.Tensor) else v for k, v in make_inputs(*CASES["base"]).items()}
    wide = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = ssd_chunked(**inputs)
    y_wide, state_wide = ssd_chunked(**wide)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert torch.equal(state, state_wide) and torch.equal(y, y_wide.bfloat16())


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "initial_state"])
def test_gradient_equals_that_of_the_loop(name):
    inputs = make_inputs(*CASES["base"])
    weight = torch.randn(2, 20, 6, 4, dtype=torch.float64), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    gradients = []
    for function in (ssd_chunked, ssd_ref):
        leaf = inputs[name].clone().requires_grad_()
        y, state = function(**{**inputs, name: leaf})
        ((y * weight[0]).sum() + (state * weight[1]).sum()).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("split", [0, 3, 8, 19, 20])
def test_two_parts_joined_by_their_state_equal_the_whole(split):
    inputs = make_inputs(*CASES["base"])
    y, state = ssd_chunked(**inputs)
    parts, carried = [], inputs["initial_state"]
    for part in (slice(0, split), slice(split, None)):
        cut = {k: inputs[k][:, part] for k in ("x", "dt", "B", "C")}
        y_part, carried = ssd_chunked(**{**inputs, **cut, "initial_state": carried})
        parts.append(y_part)
    torch.testing.assert_close(torch.cat(parts, dim=1), y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(carried, state, rtol=1e-11, atol=1e-11)


def test_strong_decay_does_not_overflow():
    inputs = make_inputs(*CASES["base"])
    inputs["A"] = inputs["A"] * 1e4  # exp of the sum over a chunk is far outside fp64, above the diagonal
    y, state = ssd_chunked(**inputs)
    y_ref, state_ref = ssd_ref(**inputs)
    torch.testing.assert_close(y, y_ref, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state, state_ref, rtol=1e-9, atol=1e-9)


def fp32_loop(x, dt, A, B, C, D, chunk_size, initial_state):
    """ssd_ref's formula in fp32, for heads shared as in CASES["base"]: what the tolerance is measured against."""
    x, B = x.repeat_interleave(3, dim=2), B.repeat_interleave(3, dim=2)
    state, y = initial_state, []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        state = decay * state + dt[:, t, :, None, None] * x[:, t, :, :, None] * B[:, t, :, None, :]
        y.append((state * C[:, t, :, None, :]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(y, dim=1), state
