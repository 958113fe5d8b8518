"""The operators, one file each; each is also torch.ops.llamba.<name> with its outputs as arguments."""

from .argmax import argmax
from .attention_step import attention_step
from .causal_conv1d_update import causal_conv1d_update
from .checkpointing_ssu import checkpointing_ssu
from .conv1d_verify import conv1d_verify
from .cursor import cursor_begin, cursor_commit, cursor_reset, cursor_rollback
from .gated_rms_norm import gated_rms_norm
from .kv_compact import kv_compact
from .mamba1_materialize import mamba1_materialize
from .mamba1_verify import mamba1_verify
from .mamba2_verify import mamba2_verify
from .materialize import materialize
from .rms_norm import rms_norm
from .rope import rope
from .selective_scan import selective_scan
from .selective_state_update import selective_state_update
from .silu_mul import silu_mul
from .skinny_linear import skinny_linear
from .slot_copy import slot_copy
from .speculative_accept import speculative_accept
from .state_import import state_import

__all__ = [
    "argmax",
    "attention_step",
    "causal_conv1d_update",
    "checkpointing_ssu",
    "conv1d_verify",
    "cursor_begin",
    "cursor_commit",
    "cursor_reset",
    "cursor_rollback",
    "gated_rms_norm",
    "kv_compact",
    "mamba1_materialize",
    "mamba1_verify",
    "mamba2_verify",
    "materialize",
    "rms_norm",
    "rope",
    "selective_scan",
    "selective_state_update",
    "silu_mul",
    "skinny_linear",
    "slot_copy",
    "speculative_accept",
    "state_import",
]
