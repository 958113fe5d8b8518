"""The Mamba-1 mixer over whole sequences: Mamba's own, Falcon-Mamba's, Jamba's, and MambaInLlama's."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import selective_scan
from .config import LlambaConfig
from .conv import causal_conv, masked
from .mamba2 import inverse_softplus
from .norm import LlambaRMSNorm, rms_normalize


class Mamba1Mixer(nn.Module):
    """Causal conv + SiLU on x -> selective scan with A per channel and state -> gate -> out_proj.

    config.mamba1_selection says where dt, B and C come from, and with it the parameters:
    "conv": in_proj (rows x | z), x_proj of the convolved x (rows of dt_proj's input | B | C), their norms if any.
    "input": in_proj_x, in_proj_z, B_proj, C_proj and dt_proj_down, all of the layer's input. x is repeated to d_inner
        channels before the convolution: x head h // (heads / x_heads) is head h of mamba1_d_state channels.
    """

    def __init__(self, config: LlambaConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.from_input = config.mamba1_selection == "input"
        self.d_inner, self.d_state = config.mamba1_d_inner, config.mamba1_d_state
        self.headdim, self.x_heads = config.mamba1_headdim, config.mamba1_x_heads
        self.B_heads, self.C_heads = config.mamba1_B_heads, config.mamba1_C_heads
        self.dt_bias_count = config.mamba1_dt_bias_count
        self.inner_norm, self.inner_norm_eps = config.mamba1_inner_norm, config.mamba1_inner_norm_eps
        self.selection_sizes = config.mamba1_selection_sizes

        dt_rank, B_dim, C_dim = self.selection_sizes
        hidden, bias = config.hidden_size, config.mamba_proj_bias
        if self.from_input:
            self.in_proj_x = nn.Linear(hidden, config.mamba1_x_dim, bias=bias)
            self.B_proj = nn.Linear(hidden, B_dim, bias=bias)
            self.C_proj = nn.Linear(hidden, C_dim, bias=bias)
            self.in_proj_z = nn.Linear(hidden, self.d_inner, bias=bias)
            self.dt_proj_down = nn.Linear(hidden, dt_rank, bias=False)
        else:
            self.in_proj = nn.Linear(hidden, 2 * self.d_inner, bias=bias)
            self.x_proj = nn.Linear(self.d_inner, sum(self.selection_sizes), bias=False)
            if self.inner_norm == "weighted":
                self.dt_layernorm = LlambaRMSNorm(dt_rank, self.inner_norm_eps)
                self.B_layernorm = LlambaRMSNorm(B_dim, self.inner_norm_eps)
                self.C_layernorm = LlambaRMSNorm(C_dim, self.inner_norm_eps)
        self.dt_proj = nn.Linear(dt_rank, self.d_inner)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, config.mamba_d_conv, groups=self.d_inner, bias=config.mamba_conv_bias
        )
        self.A_log = nn.Parameter(torch.empty(self.d_inner, self.d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, hidden, bias=bias)

    def initial_dynamics(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Mamba's usual start: step sizes log-uniform in [0.001, 0.1], A = 1 to d_state, D one. By parameter name."""
        low, high = math.log(1e-3), math.log(1e-1)
        dt = torch.exp(torch.empty(self.d_inner).uniform_(low, high, generator=generator)).clamp(min=1e-4)
        return {
            "dt_proj.bias": inverse_softplus(dt) / self.dt_bias_count,
            "A_log": torch.arange(1.0, self.d_state + 1).log().expand(self.d_inner, -1),
            "D": torch.ones(self.d_inner),
        }

    @property
    def dt_bias(self) -> Tensor:
        """What is added to dt before the softplus, fp32 (d_inner)."""
        return self.dt_bias_count * self.dt_proj.bias.float()

    def forward(self, u: Tensor, attention_mask: Tensor | None = None, handover=None) -> Tensor:
        """u: (batch, L, hidden). attention_mask: (batch, L), 0 on padding. handover: see `LlambaModel.forward`."""
        return self.out_proj(self.features(u, attention_mask, handover))

    def features(self, u: Tensor, attention_mask: Tensor | None = None, handover=None) -> Tensor:
        """Everything before out_proj, (batch, L, d_inner)."""
        if self.from_input:
            x_raw, z = self.in_proj_x(u), self.in_proj_z(u)
        else:
            x_raw, z = self.in_proj(u).chunk(2, dim=-1)
        x_raw = masked(x_raw, attention_mask)
        repeated = x_raw.unflatten(-1, (self.x_heads, self.headdim))
        repeated = repeated.repeat_interleave(self.d_inner // x_raw.shape[-1], dim=-2).flatten(-2)
        x = masked(causal_conv(repeated, self.conv1d), attention_mask)  # the bias made padding non-zero again
        low, B, C = self.select(u if self.from_input else x)
        dt = F.linear(low, self.dt_proj.weight)  # the bias is added in fp32
        dt, B, C, z = (t.to(x.dtype) for t in (dt, B, C, z))  # under autocast a norm gives fp32
        A = -torch.exp(self.A_log.float())

        def run(part: slice, state: Tensor | None) -> tuple[Tensor, Tensor]:
            inputs = x[:, part], dt[:, part], A, B[:, part], C[:, part], self.D.float(), z[:, part], self.dt_bias
            return scan(*inputs, B_heads=self.B_heads, C_heads=self.C_heads, initial_state=state)

        if handover is None:
            return run(slice(None), None)[0]
        y, state = run(slice(handover.fold_point), None)
        handover.mamba1(self.layer_idx, x_raw, x, dt, B, state)
        return torch.cat([y, run(slice(handover.fold_point, None), state)[0]], dim=1)

    def select(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt_proj's input, B and C of what they come from: the layer's input or the convolved x."""
        if self.from_input:
            return self.dt_proj_down(source), self.B_proj(source), self.C_proj(source)
        parts = self.x_proj(source).split(self.selection_sizes, dim=-1)
        if self.inner_norm == "plain":
            return tuple(rms_normalize(part, self.inner_norm_eps).to(part.dtype) for part in parts)
        if self.inner_norm == "weighted":
            norms = self.dt_layernorm, self.B_layernorm, self.C_layernorm
            return tuple(norm(part) for norm, part in zip(norms, parts, strict=True))
        return parts


def scan(x, dt, A, B, C, D, z, dt_bias, *, B_heads, C_heads, initial_state) -> tuple[Tensor, Tensor]:
    """`ops.selective_scan` where it runs, else the same token by token: on other devices and in fp64."""
    inputs = x, dt, A, B, C, D, z, dt_bias
    if x.device.type != "cpu" or x.dtype == torch.float64:
        return scan_by_token(*inputs, B_heads, C_heads, initial_state)
    heads = {"B_heads": B_heads, "C_heads": C_heads}
    return selective_scan(*inputs, **heads, initial_state=initial_state, return_final_state=True)


def scan_by_token(x, dt, A, B, C, D, z, dt_bias, B_heads, C_heads, initial_state) -> tuple[Tensor, Tensor]:
    """y (batch, L, d_inner) in x's dtype and the fp32 state after the last token (fp64 if x is fp64)."""
    with torch.autocast(x.device.type, enabled=False):
        acc = torch.promote_types(x.dtype, torch.float32)
        wide, dt, A, B, C, D, z, dt_bias = (t.to(acc) for t in (x, dt, A, B, C, D, z, dt_bias))
        batch, length, channels = x.shape
        B, C = (
            t.unflatten(-1, (heads, -1)).repeat_interleave(channels // heads, dim=2)
            for t, heads in ((B, B_heads), (C, C_heads))
        )  # [batch, L, d_inner, d_state]
        step = F.softplus(dt + dt_bias)
        decay = torch.exp(step.unsqueeze(-1) * A)
        added = (step * wide).unsqueeze(-1) * B
        state = wide.new_zeros(batch, *A.shape) if initial_state is None else initial_state
        y = []
        for t in range(length):
            state = decay[:, t] * state + added[:, t]
            y.append((state * C[:, t]).sum(-1))
        y = torch.stack(y, dim=1) if y else wide.new_zeros(batch, 0, channels)
        return ((y + D * wide) * F.silu(z)).to(x.dtype), state
