"""The operators, one file each; each is also torch.ops.llamba.<name> with its outputs as arguments."""

from .cursor import cursor_begin, cursor_commit, cursor_reset, cursor_rollback
from .gated_rms_norm import gated_rms_norm
from .mamba2_verify import mamba2_verify
from .materialize import materialize
from .skinny_linear import skinny_linear
from .slot_copy import slot_copy
from .speculative_accept import speculative_accept
from .state_import import state_import

__all__ = [
    "cursor_begin",
    "cursor_commit",
    "cursor_reset",
    "cursor_rollback",
    "gated_rms_norm",
    "mamba2_verify",
    "materialize",
    "skinny_linear",
    "slot_copy",
    "speculative_accept",
    "state_import",
]
