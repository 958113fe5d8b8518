"""The memory of a decoding step: allocated once, for the largest step of a session, and viewed by smaller ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import LlambaConfig


@dataclass(frozen=True)
class Space:
    """The tensors of a step of (batch, window) tokens; all are (batch, window, width) but the first two.

    What only layers of a kind that the model has not would use is None.
    """

    slots: Tensor  # (batch) int32
    positions: Tensor  # (batch, window) int32
    hidden: Tensor  # the residual stream
    u: Tensor  # a sublayer's input, after the norm
    mixed: Tensor  # its output, not yet added to hidden
    logits: Tensor
    # attention
    qkv: Tensor | None = None  # q, k and v, columns of one projection
    qk: Tensor | None = None
    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    attended: Tensor | None = None
    # an MLP
    gate: Tensor | None = None
    up: Tensor | None = None
    # Mamba-2
    projected: Tensor | None = None  # z, xBC and dt, columns of one projection
    z: Tensor | None = None
    xBC: Tensor | None = None
    dt: Tensor | None = None
    ssm: Tensor | None = None
    # Mamba-1
    m1_projected: Tensor | None = None  # raw x and z, columns of one projection
    m1_x: Tensor | None = None
    m1_z: Tensor | None = None
    m1_conv: Tensor | None = None  # x after the convolution
    m1_selected: Tensor | None = None  # dt_proj's input, B and C, columns of one projection
    m1_low: Tensor | None = None
    m1_B: Tensor | None = None
    m1_C: Tensor | None = None
    m1_dt: Tensor | None = None
    m1_y: Tensor | None = None


class Workspace:
    """Buffers for steps of up to `nslots` sequences of `max_window` tokens. Steps of any shape use the same memory."""

    def __init__(self, config: LlambaConfig, dtype: torch.dtype, nslots: int, max_window: int):
        self.nslots, self.max_window = nslots, max_window
        self.columns = _columns(config)
        rows = nslots * max_window
        widths = _widths(config) | {name: sum(parts.values()) for name, parts in self.columns.items()}
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
        for name, parts in self.columns.items():
            views |= zip(parts, views[name].split(list(parts.values()), dim=-1), strict=True)
        if "qkv" in views:
            views["qk"] = views["qkv"][..., : views["q"].shape[-1] + views["k"].shape[-1]]
        positions = self.positions[:rows].view(batch, window)
        return Space(slots=self.slots[:batch], positions=positions, **views)


def _columns(config: LlambaConfig) -> dict[str, dict[str, int]]:
    """Buffers that are columns of one projection: the name and width of each part."""
    q, kv = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    columns = {}
    if "attention" in config.layers:
        columns["qkv"] = {"q": q, "k": kv, "v": kv}
    if "mamba2" in config.layers:
        columns["projected"] = {"z": config.mamba_d_inner, "xBC": config.mamba_conv_dim, "dt": config.mamba_num_heads}
    if "mamba1" in config.layers:
        columns["m1_projected"] = {"m1_x": config.mamba1_x_dim, "m1_z": config.mamba1_d_inner}
        columns["m1_selected"] = dict(zip(("m1_low", "m1_B", "m1_C"), config.mamba1_selection_sizes, strict=True))
    return columns


def _widths(config: LlambaConfig) -> dict[str, int]:
    """All other buffers."""
    widths = dict.fromkeys(("hidden", "u", "mixed"), config.hidden_size) | {"logits": config.vocab_size}
    if "attention" in config.layers:
        widths["attended"] = config.num_attention_heads * config.head_dim
    if any(config.mlp_layers):
        widths |= dict.fromkeys(("gate", "up") if config.mlp_gated else ("up",), config.intermediate_size)
    if "mamba2" in config.layers:
        widths["ssm"] = config.mamba_d_inner
    if "mamba1" in config.layers:
        widths |= dict.fromkeys(("m1_conv", "m1_dt", "m1_y"), config.mamba1_d_inner)
    return widths
