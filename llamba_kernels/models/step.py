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
    """Binds a model to a cache. Call it between `cursor.begin` and `cursor.commit`.

    The weights are read in place; only A, D and dt_bias are widened to fp32, by `bind`, which whoever changes the model
    calls again.
    """

    # The operators of a step, as attributes, so that a profile can put a clock around each.
    linear = staticmethod(skinny_linear)
    norm = staticmethod(gated_rms_norm)
    mamba2 = staticmethod(mamba2_verify)
    attend = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, model: LlambaForCausalLM, cache: DecodeCache):
        self.model = model
        self.cache = cache
        self.config = model.config
        # One table for all steps: computing an angle alone or among others may differ in the last bit.
        self.cos, self.sin = rope_cos_sin(model.config, torch.arange(cache.max_tokens))  # [max_tokens, head_dim]
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
        spans = self._spans(slots.tolist(), tokens.shape[1])
        hidden = F.embedding(tokens, self.model.model.embed_tokens.weight)  # [batch, window, hidden]
        for layer, buffers, dynamics in zip(self.model.model.layers, self.cache.layers, self.dynamics, strict=True):
            u = self._rms_norm(layer.input_layernorm, hidden)
            if layer.is_mamba:
                hidden = hidden + self._mamba2(layer.mamba, dynamics, buffers, slots, u)
            else:
                hidden = hidden + self._attention(layer.self_attn, buffers, spans, u)
            hidden = hidden + self._mlp(layer.mlp, self._rms_norm(layer.post_attention_layernorm, hidden))
        hidden = self._rms_norm(self.model.model.norm, hidden)
        return self.linear(hidden, self.model.lm_head.weight)

    def _spans(self, slots: list[int], window: int) -> list[tuple[int, int, int, int]]:
        """(batch index, slot, position, ntokens) of every sequence that is not padding."""
        spans = []
        for i, slot in enumerate(slots):
            if slot < 0:
                continue
            position, _, _, ntokens = self.cache.cursor.table[slot, :4].tolist()
            if not 1 <= ntokens <= window:
                raise ValueError(f"step: slot {slot} must have an open step of 1 to {window} tokens; got {ntokens}")
            if position + ntokens > self.cache.max_tokens:
                raise ValueError(
                    f"step: slot {slot} must stay within max_tokens = {self.cache.max_tokens}; "
                    f"got {position} + {ntokens} tokens"
                )
            spans.append((i, slot, position, ntokens))
        return spans

    def _mamba2(self, mixer: Mamba2Mixer, dynamics, buffers: Mamba2Buffers, slots: Tensor, u: Tensor) -> Tensor:
        sizes = [mixer.d_inner, mixer.conv_dim, mixer.num_heads]
        z, xBC, dt = self.linear(u, mixer.in_proj.weight).split(sizes, dim=-1)
        y = self.mamba2(
            *(xBC, dt, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, *dynamics),
            *(buffers.checkpoint, buffers.rows, buffers.dt_rows, self.cache.cursor.table, slots),
            x_heads=self.config.mamba_x_heads,
            B_heads=self.config.mamba_B_heads,
            C_heads=self.config.mamba_C_heads,
        )  # [batch, window, nheads, headdim]
        normed = self.norm(y.flatten(-2), z, mixer.norm.weight, mixer.norm.eps, mixer.norm.group_size)
        return self.linear(normed, mixer.out_proj.weight)

    def _attention(self, attention: LlambaAttention, buffers: AttentionBuffers, spans, u: Tensor) -> Tensor:
        q, k, v = (
            self.linear(u, proj.weight, proj.bias).unflatten(-1, (-1, attention.head_dim))  # [batch, window, heads, hd]
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        y = torch.zeros_like(q)
        for i, slot, position, ntokens in spans:
            span = slice(position, position + ntokens)
            cos, sin = self.cos[span].unsqueeze(1), self.sin[span].unsqueeze(1)  # [ntokens, 1, head_dim]
            rotated = apply_rope(q[i, :ntokens], cos, sin)
            buffers.k[slot, :, span] = apply_rope(k[i, :ntokens], cos, sin).transpose(0, 1)
            buffers.v[slot, :, span] = v[i, :ntokens].transpose(0, 1)
            for t in range(ntokens):
                seen = position + t + 1
                y[i, t] = self.attend(
                    rotated[t].view(1, -1, 1, attention.head_dim),
                    buffers.k[slot : slot + 1, :, :seen],
                    buffers.v[slot : slot + 1, :, :seen],
                    enable_gqa=True,
                )[0, :, 0]
        return self.linear(y.flatten(-2), attention.o_proj.weight, attention.o_proj.bias)

    def _rms_norm(self, norm: LlambaRMSNorm, hidden: Tensor) -> Tensor:
        return self.norm(hidden, None, norm.weight, norm.eps, hidden.shape[-1])

    def _mlp(self, mlp: LlambaMLP, u: Tensor) -> Tensor:
        gate = self.linear(u, mlp.gate_proj.weight, mlp.gate_proj.bias)
        up = self.linear(u, mlp.up_proj.weight, mlp.up_proj.bias)
        product = torch.empty_like(up)
        # token by token: torch's vectorised SiLU treats the last few elements of a tensor by another formula
        for row, gate_row, up_row in zip(product.flatten(0, 1), gate.flatten(0, 1), up.flatten(0, 1), strict=True):
            torch.mul(mlp.act_fn(gate_row), up_row, out=row)
        return self.linear(product, mlp.down_proj.weight, mlp.down_proj.bias)
