"""One decoding step of the hybrid: a few new tokens per sequence against a cache. Plain decoding is the one-token case.

Every operation gives a token the same bits however many tokens share the step: linears, norms and the Mamba-2 layer
by their kernels, SiLU and attention by running token by token. So speculative and plain greedy decoding agree exactly.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cache import AttentionBuffers, DecodeCache, Mamba2Buffers
from ..ops import gated_rms_norm, mamba2_verify, skinny_linear
from .mamba2 import Mamba2Mixer
from .model import LlambaAttention, LlambaForCausalLM, LlambaMLP, LlambaRMSNorm
from .rope import apply_rope, rope_cos_sin


class StepModel:
    """Binds a model to a cache. Call it between `cursor.begin` and `cursor.commit`."""

    def __init__(self, model: LlambaForCausalLM, cache: DecodeCache):
        self.model = model
        self.cache = cache
        self.config = model.config
        # One table for all steps: computing an angle alone or among others may differ in the last bit.
        self.cos, self.sin = rope_cos_sin(model.config, torch.arange(cache.max_tokens))  # [max_tokens, head_dim]
        self.dynamics = [
            (
                -torch.exp(layer.mamba.A_log.detach().float()),
                layer.mamba.D.detach().float(),
                layer.mamba.dt_bias.detach().float(),
            )
            if layer.is_mamba
            else None
            for layer in model.model.layers
        ]  # A, D, dt_bias of each Mamba-2 layer, fp32

    @torch.inference_mode()
    def __call__(self, slots: Tensor, tokens: Tensor) -> Tensor:
        """tokens (batch, window) int64: each slot's open step, padded on the right. Returns logits (batch, window, vocab).

        Row t of a sequence predicts the token after its token t; rows beyond the step's ntokens are meaningless.
        """
        header = self.cache.cursor.table[slots.long(), :4].tolist()
        spans = [(position, ntokens) for position, _, _, ntokens in header]
        for slot, (position, ntokens) in zip(slots.tolist(), spans, strict=True):
            if position + ntokens > self.cache.max_tokens:
                raise ValueError(
                    f"step: slot {slot} must stay within max_tokens = {self.cache.max_tokens}; "
                    f"got {position} + {ntokens} tokens"
                )
        hidden = F.embedding(tokens, self.model.model.embed_tokens.weight)  # [batch, window, hidden]
        for layer, buffers, dynamics in zip(self.model.model.layers, self.cache.layers, self.dynamics, strict=True):
            u = _rms_norm(layer.input_layernorm, hidden)
            if layer.is_mamba:
                hidden = hidden + self._mamba2(layer.mamba, dynamics, buffers, slots, u)
            else:
                hidden = hidden + self._attention(layer.self_attn, buffers, slots.tolist(), spans, u)
            hidden = hidden + _mlp(layer.mlp, _rms_norm(layer.post_attention_layernorm, hidden))
        hidden = _rms_norm(self.model.model.norm, hidden)
        return skinny_linear(hidden, self.model.lm_head.weight)

    def _mamba2(self, mixer: Mamba2Mixer, dynamics, buffers: Mamba2Buffers, slots: Tensor, u: Tensor) -> Tensor:
        A, D, dt_bias = dynamics
        sizes = [mixer.d_inner, mixer.conv_dim, mixer.num_heads]
        z, xBC, dt = skinny_linear(u, mixer.in_proj.weight).split(sizes, dim=-1)
        y = mamba2_verify(
            xBC,
            dt,
            mixer.conv1d.weight.squeeze(1),
            mixer.conv1d.bias,
            A,
            D,
            dt_bias,
            buffers.checkpoint,
            buffers.rows,
            buffers.dt_rows,
            self.cache.cursor.table,
            slots,
            x_heads=self.config.mamba_x_heads,
            B_heads=self.config.mamba_B_heads,
            C_heads=self.config.mamba_C_heads,
        )  # [batch, window, nheads, headdim]
        normed = gated_rms_norm(y.flatten(-2), z, mixer.norm.weight, mixer.norm.eps, mixer.norm.group_size)
        return skinny_linear(normed, mixer.out_proj.weight)

    def _attention(
        self,
        attention: LlambaAttention,
        buffers: AttentionBuffers,
        slots: list[int],
        spans: list[tuple[int, int]],
        u: Tensor,
    ) -> Tensor:
        q, k, v = (
            skinny_linear(u, proj.weight, proj.bias).unflatten(
                -1, (-1, attention.head_dim)
            )  # [batch, window, heads, hd]
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        y = torch.zeros_like(q)
        for i, (slot, (position, ntokens)) in enumerate(zip(slots, spans, strict=True)):
            span = slice(position, position + ntokens)
            cos, sin = self.cos[span].unsqueeze(1), self.sin[span].unsqueeze(1)  # [ntokens, 1, head_dim]
            rotated = apply_rope(q[i, :ntokens], cos, sin)
            buffers.k[slot, :, span] = apply_rope(k[i, :ntokens], cos, sin).transpose(0, 1)
            buffers.v[slot, :, span] = v[i, :ntokens].transpose(0, 1)
            for t in range(ntokens):
                seen = position + t + 1
                y[i, t] = F.scaled_dot_product_attention(
                    rotated[t].view(1, -1, 1, attention.head_dim),
                    buffers.k[slot : slot + 1, :, :seen],
                    buffers.v[slot : slot + 1, :, :seen],
                    enable_gqa=True,
                )[0, :, 0]
        return skinny_linear(y.flatten(-2), attention.o_proj.weight, attention.o_proj.bias)


def _rms_norm(norm: LlambaRMSNorm, hidden: Tensor) -> Tensor:
    return gated_rms_norm(hidden, None, norm.weight, norm.eps, hidden.shape[-1])


def _mlp(mlp: LlambaMLP, u: Tensor) -> Tensor:
    gate = skinny_linear(u, mlp.gate_proj.weight, mlp.gate_proj.bias)
    up = skinny_linear(u, mlp.up_proj.weight, mlp.up_proj.bias)
    product = torch.empty_like(up)
    # token by token: torch's vectorised SiLU treats the last few elements of a tensor by another formula
    for row, gate_row, up_row in zip(product.flatten(0, 1), gate.flatten(0, 1), up.flatten(0, 1), strict=True):
        torch.mul(mlp.act_fn(gate_row), up_row, out=row)
    return skinny_linear(product, mlp.down_proj.weight, mlp.down_proj.bias)
