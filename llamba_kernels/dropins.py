"""Functions of other packages under their own names and arguments, on this package's kernels."""

from .ops.causal_conv1d_update import causal_conv1d_update
from .selective_state_update import selective_state_update

__all__ = ["causal_conv1d_update", "selective_state_update"]
