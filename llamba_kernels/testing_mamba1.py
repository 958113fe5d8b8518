"""A random Mamba-1 layer with its buffers, for tests and benchmarks."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .cache import Cursor, Session
from .ops import conv1d_verify, mamba1_materialize, mamba1_verify


@dataclass
class Mamba1Layer:
    """What conv1d_verify and mamba1_verify are called with: parameters, buffers and a cursor of its own."""

    conv: dict  # conv_weight, conv_bias
    parameters: dict  # A, D, dt_bias
    checkpoint: Tensor
    rows: Tensor
    x_rows: Tensor
    dt_rows: Tensor
    B_rows: Tensor
    cursor: Cursor
    heads: dict  # B_heads, C_heads
    x_heads: int
    headdim: int
    gate: bool = True

    BUFFERS = ("checkpoint", "rows", "x_rows", "dt_rows", "B_rows")

    @property
    def d_inner(self) -> int:
        return self.checkpoint.shape[1]

    @property
    def dstate(self) -> int:
        return self.checkpoint.shape[2]

    @property
    def buffers(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.BUFFERS]

    def conv_arguments(self, x: Tensor, slots: Tensor) -> tuple:
        """The positional arguments of conv1d_verify and of its reference, and the keywords."""
        keywords = {"x_heads": self.x_heads, "headdim": self.headdim}
        return (x, *self.conv.values(), self.rows, self.cursor.table, slots), keywords

    def arguments(self, tokens: dict, slots: Tensor) -> tuple:
        """The positional arguments of mamba1_verify and of its reference. tokens: x (after the conv), dt, B, C, z."""
        buffers = self.checkpoint, self.x_rows, self.dt_rows, self.B_rows
        return (*tokens.values(), *self.parameters.values(), *buffers, self.cursor.table, slots)

    def convolve(self, x: Tensor, slots: Tensor, parents: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        arguments, keywords = self.conv_arguments(x, slots)
        return conv1d_verify(*arguments, **keywords, parents=parents, out=out)

    def verify(self, tokens: dict, slots: Tensor, parents: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        options = dict(fold_every=self.cursor.session.fold_every, parents=parents, out=out)
        return mamba1_verify(*self.arguments(tokens, slots), **self.heads, **options)

    def materialize(self, slots: Tensor, state: Tensor | None = None, tail: Tensor | None = None) -> tuple:
        return mamba1_materialize(
            *self.materialize_arguments(slots), **self.materialize_keywords, state=state, tail=tail
        )

    def materialize_arguments(self, slots: Tensor) -> tuple:
        return (self.parameters["A"], self.parameters["dt_bias"], *self.buffers, self.cursor.table, slots)

    @property
    def materialize_keywords(self) -> dict:
        return {"B_heads": self.heads["B_heads"], "fold_every": self.cursor.session.fold_every}

    def tokens(self, *shape: int, generator: torch.Generator | None = None) -> dict[str, Tensor | None]:
        """Random x (after the conv), raw dt, B, C and z of `shape` tokens."""
        widths = {"x": self.d_inner, "dt": self.d_inner}
        widths |= {name: self.heads[f"{name}_heads"] * self.dstate for name in ("B", "C")}
        widths["z"] = self.d_inner if self.gate else None
        return {name: width and self.random(*shape, width, generator=generator) for name, width in widths.items()}

    def raw(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Random x before the conv."""
        return self.random(*shape, self.rows.shape[-1], generator=generator)

    def random(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(*shape, generator=generator).to(self.rows.dtype)


def make_mamba1_layer(
    nslots=2,
    d_inner=96,
    dstate=16,
    x_heads=None,
    headdim=None,
    B_heads=1,
    C_heads=1,
    dtype=torch.float32,
    checkpoint_dtype=torch.float32,
    bias=True,
    gate=True,
    session: Session | None = None,
    generator: torch.Generator | None = None,
) -> Mamba1Layer:
    """Parameters as in trained models: A is -1 to -dstate, dt around 0.001 to 0.1 after softplus. Buffers hold NaN.

    x_heads None: as stock Mamba-1, one head of d_inner channels.
    """
    session = session or Session()
    x_heads, headdim = x_heads or 1, headdim or d_inner
    random = partial(torch.rand, generator=generator)
    capacity, nan = session.capacity, float("nan")

    def rows(width):
        return torch.full((nslots, capacity, width), nan, dtype=dtype)

    return Mamba1Layer(
        conv={
            "conv_weight": (random(d_inner, session.width) - 0.5).to(dtype),
            "conv_bias": (random(d_inner) - 0.5).to(dtype) if bias else None,
        },
        parameters={
            "A": -torch.arange(1.0, dstate + 1) * (0.5 + random(d_inner, 1)),
            "D": random(d_inner) if bias else None,
            "dt_bias": -7 + 5 * random(d_inner) if bias else None,
        },
        checkpoint=torch.full((nslots, d_inner, dstate), nan, dtype=checkpoint_dtype),
        rows=rows(x_heads * headdim),
        x_rows=rows(d_inner),
        dt_rows=rows(d_inner),
        B_rows=rows(B_heads * dstate),
        cursor=Cursor(nslots, session),
        heads={"B_heads": B_heads, "C_heads": C_heads},
        x_heads=x_heads,
        headdim=headdim,
        gate=gate,
    )
