"""The memory of a decoding step: allocated once, for the largest step of a session, and viewed by smaller ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import LlambaConfig


@dataclass(frozen=True)
class Space:
    """The tensors of a step of (batch, window) tokens; all are (batch, window, width) but the first two."""

    slots: Tensor  # (batch) int32
    positions: Tensor  # (batch, window) int32
    hidden: Tensor  # the residual stream
    u: Tensor  # a sublayer's input, after the norm
    mixed: Tensor  # its output, not yet added to hidden
    logits: Tensor
    qk: Tensor  # q and k, columns of one projection
    q: Tensor
    k: Tensor
    v: Tensor
    attended: Tensor
    gate: Tensor
    up: Tensor
    projected: Tensor  # z, xBC and dt, columns of one projection
    z: Tensor
    xBC: Tensor
    dt: Tensor
    ssm: Tensor


class Workspace:
    """Buffers for steps of up to `nslots` sequences of `max_window` tokens. Steps of any shape use the same memory."""

    def __init__(self, config: LlambaConfig, dtype: torch.dtype, nslots: int, max_window: int):
        self.nslots, self.max_window = nslots, max_window
        q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
        self.columns = {
            "qkv": (q, kv, kv),
            "projected": (config.mamba_d_inner, config.mamba_conv_dim, config.mamba_num_heads),
        }
        widths = {
            "hidden": config.hidden_size,
            "u": config.hidden_size,
            "mixed": config.hidden_size,
            "logits": config.vocab_size,
            "attended": q,
            "gate": config.intermediate_size,
            "up": config.intermediate_size,
            "ssm": config.mamba_d_inner,
            **{name: sum(columns) for name, columns in self.columns.items()},
        }
        rows = nslots * max_window
        self.buffers = {name: torch.empty(rows, width, dtype=dtype) for name, width in widths.items()}
        self.slots = torch.empty(nslots, dtype=torch.int32)
        self.positions = torch.empty(rows, dtype=torch.int32)
        self._spaces: dict[tuple[int, int], Space] = {}

    def of(self, batch: int, window: int) -> Space:
        """The step's tensors; made once for each shape."""
        if (batch, window) not in self._spaces:
            if not 1 <= batch <= self.nslots or not 1 <= window <= self.max_window:
                raise ValueError(
                    f"step: tokens must be (1, 1) to (nslots, max_window) = ({self.nslots}, {self.max_window}); "
                    f"got ({batch}, {window})"
                )
            self._spaces[batch, window] = self._make(batch, window)
        return self._spaces[batch, window]

    def _make(self, batch: int, window: int) -> Space:
        rows = batch * window
        views = {name: buffer[:rows].view(batch, window, -1) for name, buffer in self.buffers.items()}
        qkv, projected = views.pop("qkv"), views["projected"]
        q, k, v = qkv.split(self.columns["qkv"], dim=-1)
        z, xBC, dt = projected.split(self.columns["projected"], dim=-1)
        qk = qkv[..., : q.shape[-1] + k.shape[-1]]
        positions = self.positions[:rows].view(batch, window)
        return Space(slots=self.slots[:batch], positions=positions, qk=qk, q=q, k=k, v=v, z=z, xBC=xBC, dt=dt, **views)
