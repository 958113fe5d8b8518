"""RMSNorm, computed in fp32."""

import torch
from torch import Tensor, nn


class LlambaRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        return self.weight * rms_normalize(hidden, self.eps).to(hidden.dtype)


def rms_normalize(hidden: Tensor, eps: float) -> Tensor:
    """hidden divided by the root mean square of its last dimension, in fp32."""
    wide = hidden.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
