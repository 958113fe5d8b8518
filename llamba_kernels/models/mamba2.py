"""The Mamba-2 mixer over whole sequences, with the parameter layout that Mamba-2 and MambaInLlama share."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import LlambaConfig
from .conv import causal_conv, masked
from .norm import rms_normalize
from .ssd import ssd_chunked


class GatedRMSNorm(nn.Module):
    """RMSNorm(y * SiLU(z)) over groups of `group_size` channels, the gate before the norm."""

    def __init__(self, size: int, group_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.group_size = group_size
        self.eps = eps

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        return (self.weight * self.normalize(y, z)).to(y.dtype)

    def normalize(self, y: Tensor, z: Tensor) -> Tensor:
        """The fp32 values that `weight` scales."""
        gated = (y.float() * F.silu(z.float())).unflatten(-1, (-1, self.group_size))
        return rms_normalize(gated, self.eps).flatten(-2)


class Mamba2Mixer(nn.Module):
    """in_proj -> causal conv + SiLU on (x, B, C) -> SSD -> gated RMSNorm -> out_proj.

    in_proj's rows are z | x | B | C | dt. x, B and C keep their own head counts throughout: a head is shared, never
    repeated, so what decoding must remember of a token is only its raw (x, B, C) and dt.
    """

    def __init__(self, config: LlambaConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.mamba_num_heads
        self.head_dim = config.mamba_head_dim
        self.d_state = config.mamba_d_state
        self.d_conv = config.mamba_d_conv
        self.chunk_size = config.mamba_chunk_size
        self.d_inner = config.mamba_d_inner
        self.conv_dim = config.mamba_conv_dim
        self.xBC_sizes = [
            config.mamba_x_heads * self.head_dim,
            config.mamba_B_heads * self.d_state,
            config.mamba_C_heads * self.d_state,
        ]

        bias = config.mamba_proj_bias
        self.in_proj = nn.Linear(config.hidden_size, self.d_inner + self.conv_dim + self.num_heads, bias=bias)
        self.conv1d = nn.Conv1d(
            self.conv_dim, self.conv_dim, self.d_conv, groups=self.conv_dim, bias=config.mamba_conv_bias
        )
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = GatedRMSNorm(self.d_inner, config.mamba_norm_group_size, config.mamba_norm_eps)
        self.out_proj = nn.Linear(self.d_inner, config.hidden_size, bias=bias)

    def initial_dynamics(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Mamba-2's usual random start: step sizes log-uniform in [0.001, 0.1], A uniform in [1, 16], D one."""
        dt = torch.exp(torch.empty(self.num_heads).uniform_(math.log(1e-3), math.log(1e-1), generator=generator))
        return {
            "dt_bias": inverse_softplus(dt),
            "A_log": torch.empty(self.num_heads).uniform_(1, 16, generator=generator).log(),
            "D": torch.ones(self.num_heads),
        }

    def forward(self, u: Tensor, attention_mask: Tensor | None = None, handover=None) -> Tensor:
        """u: (batch, L, hidden). attention_mask: (batch, L), 0 on padding. handover: see `LlambaModel.forward`."""
        return self.out_proj(self.features(u, attention_mask, handover))

    def features(self, u: Tensor, attention_mask: Tensor | None = None, handover=None) -> Tensor:
        """Everything before out_proj, (batch, L, d_inner)."""
        return self.norm(*self.scan(u, attention_mask, handover))

    def scan(self, u: Tensor, attention_mask: Tensor | None = None, handover=None) -> tuple[Tensor, Tensor]:
        """Everything before the norm: the SSD output y and the gate z, both (batch, L, d_inner)."""
        z, xBC, dt = self.in_proj(u).split([self.d_inner, self.conv_dim, self.num_heads], dim=-1)
        xBC = masked(xBC, attention_mask)
        conv = masked(causal_conv(xBC, self.conv1d), attention_mask)  # the bias made padding non-zero again
        x, B, C = conv.split(self.xBC_sizes, dim=-1)
        x, B, C = x.unflatten(-1, (-1, self.head_dim)), *(t.unflatten(-1, (-1, self.d_state)) for t in (B, C))
        step = F.softplus(dt.float() + self.dt_bias.float())
        A = -torch.exp(self.A_log.float())

        if handover is None:
            y, _ = ssd_chunked(x, step, A, B, C, self.D, self.chunk_size)
        else:
            f = handover.fold_point
            y, state = ssd_chunked(x[:, :f], step[:, :f], A, B[:, :f], C[:, :f], self.D, self.chunk_size)
            handover.mamba2(self.layer_idx, xBC, dt, state)
            rest, _ = ssd_chunked(x[:, f:], step[:, f:], A, B[:, f:], C[:, f:], self.D, self.chunk_size, state)
            y = torch.cat([y, rest], dim=1)
        return y.flatten(-2), z


def inverse_softplus(value: Tensor) -> Tensor:
    return value + torch.log(-torch.expm1(-value))
