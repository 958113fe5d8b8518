"""The operators, one file each; each is also torch.ops.llamba.<name> with its outputs as arguments."""

from .gated_rms_norm import gated_rms_norm

__all__ = ["gated_rms_norm"]
