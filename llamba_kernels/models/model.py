"""Llama with some attention layers replaced by Mamba-2 mixers: the full-sequence model.

Parameter names are those of `transformers.LlamaForCausalLM`, so a Llama checkpoint loads by name; a converted layer
has `mamba` where Llama has `self_attn`. Decoding against a cache lives in `llamba_kernels.speculative`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.modeling_utils import slice_logits_to_keep

from .config import LlambaConfig
from .mamba2 import GatedRMSNorm, Mamba2Mixer
from .rope import apply_rope, rope_cos_sin


class LlambaRMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(hidden.dtype)


class LlambaAttention(nn.Module):
    """Grouped-query attention with RoPE."""

    def __init__(self, config: LlambaConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        q_size, kv_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.attention_bias)

    def forward(
        self, u: Tensor, rope: tuple[Tensor, Tensor], causal_mask: Tensor | None = None, handover=None
    ) -> Tensor:
        """u: (batch, L, hidden). rope: cos and sin, (batch, L, head_dim). causal_mask: None for plain causal."""
        cos, sin = (t.unsqueeze(1) for t in rope)  # [batch, 1, L, head_dim]
        q, k, v = (
            proj(u).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, L, head_dim]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if handover is not None:
            handover.attention(self.layer_idx, k, v)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=causal_mask, is_causal=causal_mask is None, enable_gqa=k.shape[1] != q.shape[1]
        )
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class LlambaMLP(nn.Module):
    def __init__(self, config: LlambaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, u: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(u)) * self.up_proj(u))


class LlambaDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: LlambaConfig, layer_idx: int):
        super().__init__()
        self.is_mamba = config.layers[layer_idx] == "mamba2"
        if self.is_mamba:
            self.mamba = Mamba2Mixer(config, layer_idx)
        else:
            self.self_attn = LlambaAttention(config, layer_idx)
        self.mlp = LlambaMLP(config)
        self.input_layernorm = LlambaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = LlambaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, context: "SequenceContext", handover=None) -> Tensor:
        return self.feed_forward(hidden + self.mix(self.input_layernorm(hidden), context, handover))

    def mix(self, u: Tensor, context: "SequenceContext", handover=None) -> Tensor:
        """The token mixer alone: what distillation compares between attention and Mamba-2."""
        if self.is_mamba:
            return self.mamba(u, context.attention_mask, handover)
        return self.self_attn(u, context.rope, context.causal_mask, handover)

    def feed_forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class SequenceContext:
    """What every layer of one forward pass shares: rotary angles and masks."""

    def __init__(
        self, config: LlambaConfig, hidden: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ):
        batch, length = hidden.shape[:2]
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None  # nothing is padding: the mask-free attention kernel is faster
        if position_ids is None:
            if attention_mask is None:
                position_ids = torch.arange(length, device=hidden.device).unsqueeze(0)
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        self.rope = rope_cos_sin(config, position_ids)
        self.attention_mask = attention_mask
        self.causal_mask = None
        if attention_mask is not None:
            square = torch.ones(length, length, dtype=torch.bool, device=hidden.device)
            seen = square.tril() & attention_mask.bool()[:, None, None, :]
            # A padding query sees itself: a row without any key would be NaN, and NaN * 0 is still NaN further on.
            self.causal_mask = seen | torch.eye(length, dtype=torch.bool, device=hidden.device)  # [batch, 1, L, L]


class LlambaPreTrainedModel(PreTrainedModel):
    config_class = LlambaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlambaDecoderLayer"]
    _supports_sdpa = True
    # Not a model that transformers may decode with its own KV cache or roll back by cropping one.
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, GatedRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Mamba2Mixer):
            fresh = Mamba2Mixer.initial_dynamics(module.num_heads)
            for name, value in fresh.items():
                init.copy_(getattr(module, name), value)


class LlambaModel(LlambaPreTrainedModel):
    def __init__(self, config: LlambaConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(LlambaDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlambaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        handover=None,
    ) -> BaseModelOutput:
        """Whole sequences, no cache.

        Args:
            input_ids: (batch, L), or inputs_embeds: (batch, L, hidden_size).
            attention_mask: (batch, L), 0 on padding, on either side. position_ids: (batch, L); default counts the
                tokens that are not padding.
            handover: receives what a decoding cache needs to go on from this prompt. Every attention layer calls
                `handover.attention(layer_idx, k, v)` with k after RoPE, both (batch, kv_heads, L, head_dim); every
                mamba2 layer calls `handover.mamba2(layer_idx, xBC, dt, state)` with the raw in_proj slices
                (batch, L, conv_dim) and (batch, L, nheads) and the fp32 state after `handover.fold_point` tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("LlambaModel: exactly one of input_ids and inputs_embeds must be given")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        context = SequenceContext(self.config, hidden, attention_mask, position_ids)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, context, handover)
            if output_hidden_states:
                states.append(hidden)
        hidden = self.norm(hidden)
        # As in transformers: the embedding, then each layer's output, the last one after the final norm.
        return BaseModelOutput(hidden, hidden_states=(*states[:-1], hidden) if output_hidden_states else None)


class LlambaForCausalLM(LlambaPreTrainedModel, GenerationMixin):
    """`generate` is correct and slow: without a cache every step recomputes the sequence.

    Use `llamba_kernels.speculative` to decode fast.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LlambaConfig):
        super().__init__(config)
        self.model = LlambaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool = False,
        handover=None,
        past_key_values=None,
        use_cache: bool = False,
        return_dict: bool = True,
        **loss_kwargs,
    ) -> CausalLMOutput:
        """As `transformers.LlamaForCausalLM.forward`, without a cache; `handover` as in `LlambaModel.forward`."""
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, output_hidden_states, handover)
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs)
        output = CausalLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        return output if return_dict else output.to_tuple()

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, past_key_values=None, **kwargs):
        # There is no cache, whatever use_cache says: each step needs the whole sequence.
        return super().prepare_inputs_for_generation(input_ids, **kwargs)


AutoConfig.register(LlambaConfig.model_type, LlambaConfig)
AutoModelForCausalLM.register(LlambaConfig, LlambaForCausalLM)
