"""Functions of other packages under their own names and arguments, on this package's kernels."""

from .ops.causal_conv1d_update import causal_conv1d_update

__all__ = ["causal_conv1d_update"]
