"""Functions with the names and arguments of other packages, on the operators of this one.

`from llamba_kernels.dropins import selective_state_update` in place of theirs is all that a caller changes.
"""

from .selective_state_update import selective_state_update

__all__ = ["selective_state_update"]
