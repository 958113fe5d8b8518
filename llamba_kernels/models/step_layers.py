"""What each part of a layer does in a decoding step, in place on a `Space`: mixers from u to mixed, MLPs likewise.

All are calls of operators, which a capture records. What only torch computes is yielded as a function, to be called
between the operators before and after it, now and in every replay.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..buffers import AttentionBuffers, Mamba1Buffers, Mamba2Buffers
from ..ops import (
    attention_step,
    conv1d_verify,
    gated_rms_norm,
    mamba1_materialize,
    mamba1_verify,
    mamba2_verify,
    materialize,
    rms_norm,
    rope,
    silu_mul,
    skinny_linear,
)
from .mamba1 import Mamba1Mixer
from .mamba2 import Mamba2Mixer
from .model import LlambaAttention, LlambaDecoderLayer, LlambaMLP
from .workspace import Space

if TYPE_CHECKING:
    from .step import StepModel


def dynamics_of(layer: LlambaDecoderLayer) -> tuple[Tensor, ...]:
    """A, D and dt_bias in fp32; of none but a Mamba layer there are any."""
    if not layer.is_mamba:
        return ()
    A = -layer.mamba.A_log.detach().float().exp()
    return A, layer.mamba.D.detach().float(), layer.mamba.dt_bias.detach().float()


def linear(module: nn.Linear, x: Tensor, out: Tensor) -> None:
    skinny_linear(x, module.weight, module.bias, out=out)


def add_and_norm(norm: nn.Module, mixed: Tensor | None, hidden: Tensor, out: Tensor) -> None:
    """hidden += mixed, in place; out is the norm of the sum."""
    if mixed is None:
        rms_norm(hidden, norm.weight, norm.eps, out=out)
    else:
        rms_norm(mixed, norm.weight, norm.eps, hidden, out=out)


def mamba2(step: "StepModel", mixer: Mamba2Mixer, dynamics, buffers: Mamba2Buffers, space: Space) -> None:
    linear(mixer.in_proj, space.u, space.projected)
    mamba2_verify(
        *(space.xBC, space.dt, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, *dynamics),
        *(buffers.checkpoint, buffers.rows, buffers.dt_rows, step.cache.cursor.table, space.slots),
        x_heads=step.config.mamba_x_heads,
        B_heads=step.config.mamba_B_heads,
        C_heads=step.config.mamba_C_heads,
        fold_every=step.cache.session.fold_every,
        out=space.ssm.unflatten(-1, (mixer.num_heads, mixer.head_dim)),
    )
    norm = mixer.norm
    gated_rms_norm(space.ssm, space.z, norm.weight, norm.eps, norm.group_size, out=space.ssm)
    linear(mixer.out_proj, space.ssm, space.mixed)


def mamba1(step: "StepModel", mixer: Mamba1Mixer, dynamics, buffers: Mamba1Buffers, space: Space) -> None:
    table = step.cache.cursor.table
    if mixer.from_input:
        sources = mixer.in_proj_x, mixer.in_proj_z, mixer.dt_proj_down, mixer.B_proj, mixer.C_proj
        outs = space.m1_x, space.m1_z, space.m1_low, space.m1_B, space.m1_C
        for module, out in zip(sources, outs, strict=True):
            linear(module, space.u, out)
    else:
        linear(mixer.in_proj, space.u, space.m1_projected)
    conv1d_verify(
        *(space.m1_x, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, buffers.rows, table, space.slots),
        x_heads=mixer.x_heads,
        headdim=mixer.headdim,
        out=space.m1_conv,
    )
    if not mixer.from_input:
        linear(mixer.x_proj, space.m1_conv, space.m1_selected)
        for part, weight in zip((space.m1_low, space.m1_B, space.m1_C), step.inner_norms(mixer), strict=False):
            rms_norm(part, weight, mixer.inner_norm_eps, out=part)
    skinny_linear(space.m1_low, mixer.dt_proj.weight, out=space.m1_dt)
    mamba1_verify(
        *(space.m1_conv, space.m1_dt, space.m1_B, space.m1_C, space.m1_z, *dynamics),
        *(buffers.checkpoint, buffers.x_rows, buffers.dt_rows, buffers.B_rows, table, space.slots),
        B_heads=mixer.B_heads,
        C_heads=mixer.C_heads,
        fold_every=step.cache.session.fold_every,
        out=space.m1_y,
    )
    linear(mixer.out_proj, space.m1_y, space.mixed)


def attention(step: "StepModel", mixer: LlambaAttention, _, buffers: AttentionBuffers, space: Space) -> None:
    q, k, v = space.q, space.k, space.v
    for proj, out in ((mixer.q_proj, q), (mixer.k_proj, k), (mixer.v_proj, v)):
        linear(proj, space.u, out)
    q, k, v, qk = (heads.unflatten(-1, (-1, mixer.head_dim)) for heads in (q, k, v, space.qk))
    if step.config.rotary_dim:
        rope(qk, step.cos, step.sin, space.positions, out=qk)
    attention_step(
        *(q, k, v, buffers.k, buffers.v, step.cache.cursor.table, space.slots),
        scale=mixer.scale,
        sliding_window=step.config.sliding_window or 0,
        out=space.attended.unflatten(-1, (-1, mixer.head_dim)),
    )
    linear(mixer.o_proj, space.attended, space.mixed)


def mlp(step: "StepModel", module: LlambaMLP, space: Space) -> Iterator[Callable[[], object]]:
    gate, up = space.gate, space.up
    if module.gated:
        linear(module.gate_proj, space.u, gate)
    linear(module.up_proj, space.u, up)
    if module.gated and step.config.hidden_act in ("silu", "swish"):
        silu_mul(gate, up, out=up)
    else:
        yield partial(activate, module.act_fn, gate if module.gated else None, up)
    linear(module.down_proj, up, space.mixed)


def activate(act_fn: Callable[[Tensor], Tensor], gate: Tensor | None, up: Tensor) -> None:
    """up = act(gate) * up, or act(up) without a gate.

    Token by token: torch's vectorised activations treat the last few elements of a tensor by another formula.
    """
    if gate is None:
        for row in up.flatten(0, 1):
            row.copy_(act_fn(row))
    else:
        for gate_row, row in zip(gate.flatten(0, 1), up.flatten(0, 1), strict=True):
            row.mul_(act_fn(gate_row))


MIXERS = {"attention": attention, "mamba1": mamba1, "mamba2": mamba2}


def save_layer(step: "StepModel", layer: LlambaDecoderLayer, dynamics, buffers, slot: int) -> tuple[Tensor, ...]:
    """What a layer knows of a slot, as `SavedSlot` has it."""
    table, slots = step.cache.cursor.table, torch.tensor([slot], dtype=torch.int32)
    if layer.kind == "none":
        return ()
    if layer.kind == "attention":
        position = step.cache.cursor.position(slot)
        return tuple(cache[slot, :, :position].clone() for cache in (buffers.k, buffers.v))
    (A, _, dt_bias), conv = dynamics, layer.mamba.conv1d
    if layer.kind == "mamba1":
        state, tail = mamba1_materialize(
            *(A, dt_bias, buffers.checkpoint, buffers.rows, buffers.x_rows, buffers.dt_rows, buffers.B_rows),
            *(table, slots),
            B_heads=layer.mamba.B_heads,
            fold_every=step.cache.session.fold_every,
        )
    else:
        state, tail = materialize(
            *(conv.weight.squeeze(1), conv.bias, A, dt_bias),
            *(buffers.checkpoint, buffers.rows, buffers.dt_rows, table, slots),
            x_heads=step.config.mamba_x_heads,
            B_heads=step.config.mamba_B_heads,
            C_heads=step.config.mamba_C_heads,
            fold_every=step.cache.session.fold_every,
        )
    return state[0], tail[0]
