"""One decoding step of the hybrid: a few new tokens per sequence against a cache. Plain decoding is the one-token case.

Every operation gives a token the same bits however many tokens share the step: that is what the operators promise, and
an addition does by itself. So speculative and plain greedy decoding agree exactly.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cache import AttentionBuffers, DecodeCache, Mamba2Buffers, SavedSlot
from ..ops import attention_step, gated_rms_norm, mamba2_verify, materialize, rms_norm, rope, silu_mul, skinny_linear
from .mamba2 import Mamba2Mixer
from .model import LlambaAttention, LlambaForCausalLM, LlambaMLP, LlambaRMSNorm
from .rope import rope_cos_sin


class StepModel:
    """Binds a model to a cache. Call it between `cursor.begin` and `cursor.commit`.

    The weights are read in place; only A, D and dt_bias are widened to fp32, by `bind`, which whoever changes the model
    calls again.
    """

    # The operators of a step, as attributes, so that a profile can put a clock around each.
    linear = staticmethod(skinny_linear)
    norm = staticmethod(rms_norm)
    gated_norm = staticmethod(gated_rms_norm)
    mamba2 = staticmethod(mamba2_verify)
    rotate = staticmethod(rope)
    attend = staticmethod(attention_step)
    silu_mul = staticmethod(silu_mul)

    def __init__(self, model: LlambaForCausalLM, cache: DecodeCache):
        self.model = model
        self.cache = cache
        self.config = model.config
        # One table for all steps: computing an angle alone or among others may differ in the last bit.
        cos, sin = rope_cos_sin(model.config, torch.arange(cache.max_tokens))  # [max_tokens, head_dim]: halves repeat
        self.cos, self.sin = (table[:, : model.config.head_dim // 2].contiguous() for table in (cos, sin))
        self.bind()

    def bind(self) -> None:
        """Take A, D and dt_bias from the model as it is now."""
        self.dynamics = [
            (
                -layer.mamba.A_log.detach().float().exp(),
                layer.mamba.D.detach().float(),
                layer.mamba.dt_bias.detach().float(),
            )
            if layer.is_mamba
            else None
            for layer in self.model.model.layers
        ]

    @torch.inference_mode()
    def __call__(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """Logits (batch, window, vocab) of each slot's open step; row t predicts the token after token t.

        Args:
            slots: (batch) int32; < 0 is padding. tokens: (batch, window) int64, each slot's step padded on the right.
        Rows beyond a step's ntokens, and those of padding, mean nothing.
        """
        positions = self._positions(slots.tolist(), tokens.shape[1])
        hidden = F.embedding(tokens, self.model.model.embed_tokens.weight)  # [batch, window, hidden]
        mixed = None  # what the last sublayer adds to hidden: the next norm does it
        for layer, buffers, dynamics in zip(self.model.model.layers, self.cache.layers, self.dynamics, strict=True):
            u = self._add_and_norm(layer.input_layernorm, mixed, hidden)
            if layer.is_mamba:
                mixed = self._mamba2(layer.mamba, dynamics, buffers, slots, u)
            else:
                mixed = self._attention(layer.self_attn, buffers, slots, positions, u)
            u = self._add_and_norm(layer.post_attention_layernorm, mixed, hidden)
            mixed = self._mlp(layer.mlp, u)
        return self.linear(self._add_and_norm(self.model.model.norm, mixed, hidden), self.model.lm_head.weight)

    @torch.inference_mode()
    def materialize(self, slot: int) -> SavedSlot:
        """What all layers know of a slot between two steps, for `DecodeCache.state_import`: prefix caches, export."""
        self.cache.check_slot("materialize", slot)
        slots, table = torch.tensor([slot], dtype=torch.int32), self.cache.cursor.table
        position, saved = self.cache.cursor.position(slot), []
        for layer, buffers, dynamics in zip(self.model.model.layers, self.cache.layers, self.dynamics, strict=True):
            if not layer.is_mamba:
                saved.append(tuple(cache[slot, :, :position].clone() for cache in (buffers.k, buffers.v)))
                continue
            (A, _, dt_bias), conv = dynamics, layer.mamba.conv1d
            state, tail = materialize(
                *(conv.weight.squeeze(1), conv.bias, A, dt_bias),
                *(buffers.checkpoint, buffers.rows, buffers.dt_rows, table, slots),
                x_heads=self.config.mamba_x_heads,
                B_heads=self.config.mamba_B_heads,
                C_heads=self.config.mamba_C_heads,
                fold_every=self.cache.session.fold_every,
            )
            saved.append((state[0], tail[0]))
        return SavedSlot(position, saved)

    def _positions(self, slots: list[int], window: int) -> Tensor:
        """(batch, window) int32, the position of every token of the open steps; -1 for what is none."""
        positions = torch.full((len(slots), window), -1, dtype=torch.int32)
        for i, slot in enumerate(slots):
            if slot < 0:
                continue
            self.cache.check_slot("step", slot)
            position, _, _, ntokens = self.cache.cursor.table[slot, :4].tolist()
            if not 1 <= ntokens <= window:
                raise ValueError(f"step: slot {slot} must have an open step of 1 to {window} tokens; got {ntokens}")
            if position + ntokens > self.cache.max_tokens:
                raise ValueError(
                    f"step: slot {slot} must stay within max_tokens = {self.cache.max_tokens}; "
                    f"got {position} + {ntokens} tokens"
                )
            positions[i, :ntokens] = torch.arange(position, position + ntokens, dtype=torch.int32)
        return positions

    def _add_and_norm(self, norm: LlambaRMSNorm, mixed: Tensor | None, hidden: Tensor) -> Tensor:
        """hidden += mixed, in place; returns the norm of the sum."""
        if mixed is None:
            return self.norm(hidden, norm.weight, norm.eps)
        return self.norm(mixed, norm.weight, norm.eps, hidden)

    def _mamba2(self, mixer: Mamba2Mixer, dynamics, buffers: Mamba2Buffers, slots: Tensor, u: Tensor) -> Tensor:
        sizes = [mixer.d_inner, mixer.conv_dim, mixer.num_heads]
        z, xBC, dt = self.linear(u, mixer.in_proj.weight).split(sizes, dim=-1)
        y = self.mamba2(
            *(xBC, dt, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, *dynamics),
            *(buffers.checkpoint, buffers.rows, buffers.dt_rows, self.cache.cursor.table, slots),
            x_heads=self.config.mamba_x_heads,
            B_heads=self.config.mamba_B_heads,
            C_heads=self.config.mamba_C_heads,
            fold_every=self.cache.session.fold_every,
        )  # [batch, window, nheads, headdim]
        normed = self.gated_norm(y.flatten(-2), z, mixer.norm.weight, mixer.norm.eps, mixer.norm.group_size)
        return self.linear(normed, mixer.out_proj.weight)

    def _attention(
        self, attention: LlambaAttention, buffers: AttentionBuffers, slots: Tensor, positions: Tensor, u: Tensor
    ) -> Tensor:
        q, k, v = (
            self.linear(u, proj.weight, proj.bias).unflatten(-1, (-1, attention.head_dim))  # [batch, window, heads, hd]
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = (self.rotate(heads, self.cos, self.sin, positions, out=heads) for heads in (q, k))
        y = self.attend(q, k, v, buffers.k, buffers.v, self.cache.cursor.table, slots)
        return self.linear(y.flatten(-2), attention.o_proj.weight, attention.o_proj.bias)

    def _mlp(self, mlp: LlambaMLP, u: Tensor) -> Tensor:
        gate = self.linear(u, mlp.gate_proj.weight, mlp.gate_proj.bias)
        up = self.linear(u, mlp.up_proj.weight, mlp.up_proj.bias)
        if self.config.hidden_act in ("silu", "swish"):
            return self.linear(self.silu_mul(gate, up, out=up), mlp.down_proj.weight, mlp.down_proj.bias)
        # Token by token: torch's vectorised activations treat the last few elements of a tensor by another formula.
        for gate_row, up_row in zip(gate.flatten(0, 1), up.flatten(0, 1), strict=True):
            up_row.mul_(mlp.act_fn(gate_row))
        return self.linear(up, mlp.down_proj.weight, mlp.down_proj.bias)
