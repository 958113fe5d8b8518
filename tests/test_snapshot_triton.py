"""The Triton baseline's arithmetic: on a GPU, or on the CPU by Triton's interpreter; skipped without Triton."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import softplus

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from gpu_cases import Case
from gpu_step import Step, ssm_reference
from traffic import Shape

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the tests below run here")
def test_kernel_in_the_interpreter():
    """In a process of its own: Triton reads the variable when it is imported, which others have done here."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0 and "6 passed, 1 skipped" in run.stdout, run.stdout + run.stderr


@pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="runs in the process of the test above")
@pytest.mark.parametrize("checkpoint", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [4, 16, 32])
def test_kernel_leaves_every_state_and_y(rows, checkpoint):
    from snapshot_triton import snapshot_verify

    step = Step(Case(Shape(4, 24, 32, 2), 3, 4, "bfloat16", checkpoint), DEVICE, stride=5)
    source = torch.tensor([5, 0, 10], dtype=torch.int32, device=DEVICE)
    target = torch.tensor([[6, 7, 8, 9], [4, 3, 2, 1], [11, 12, 13, 14]], dtype=torch.int32, device=DEVICE)
    before = step.state.clone()
    given = softplus(step.dt.double() + step.dt_bias)
    y, states = ssm_reference(before[source.long()], step.x, given, step.A, step.B, step.C, step.D)
    inputs = (step.x, step.dt, step.A, step.B, step.C, step.D, step.dt_bias)
    out = snapshot_verify(step.state, source, target, *inputs, step.out, tile=(rows, 4))
    torch.testing.assert_close(out.double(), y, rtol=1e-2, atol=1e-2)
    tolerance = 1e-4 if checkpoint == "float32" else 1e-2
    for t, state in enumerate(states):
        torch.testing.assert_close(step.state[target[:, t].long()].double(), state, rtol=tolerance, atol=tolerance)
    assert torch.equal(step.state[source.long()], before[source.long()])
