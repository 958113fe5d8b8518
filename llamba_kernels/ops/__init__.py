"""The operators, one file each; each is also torch.ops.llamba.<name> with its outputs as arguments."""

from .argmax import argmax
from .attention_step import attention_step
from .cursor import cursor_begin, cursor_commit, cursor_reset
from .gated_rms_norm import gated_rms_norm
from .kv_compact import kv_compact
from .mamba2_verify import mamba2_verify
from .rms_norm import rms_norm
from .rope import rope
from .silu_mul import silu_mul
from .skinny_linear import skinny_linear
from .speculative_accept import speculative_accept

__all__ = [
    "argmax",
    "attention_step",
    "cursor_begin",
    "cursor_commit",
    "cursor_reset",
    "gated_rms_norm",
    "kv_compact",
    "mamba2_verify",
    "rms_norm",
    "rope",
    "silu_mul",
    "skinny_linear",
    "speculative_accept",
]
