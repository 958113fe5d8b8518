"""Functions of other packages under their own names and arguments, on this package's kernels."""

from .ops.causal_conv1d_update import causal_conv1d_update
from .ops.checkpointing_ssu import checkpointing_ssu
from .selective_state_update import selective_state_update

__all__ = ["causal_conv1d_update", "checkpointing_ssu", "selective_state_update"]
