"""Every test: a fixed seed, and memory that torch leaves uninitialised holds NaN."""

import os

# Two test processes on two cores: OpenMP threads that spin while waiting would slow everything by 10x.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import pytest  # noqa: E402
import torch  # noqa: E402

# In this mode torch.empty and its kin hold NaN, or the largest integer: reading what nobody wrote shows up.
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
