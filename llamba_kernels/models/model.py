"""A language model of attention, Mamba-1 and Mamba-2 layers, with or without MLPs: the full-sequence model.

Parameter names are those of `transformers.LlamaForCausalLM`, so a Llama checkpoint loads by name; a Mamba layer has
`mamba` where Llama has `self_attn`. Decoding against a cache is in step.py and generation.py.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from .config import LlambaConfig
from .mamba1 import Mamba1Mixer
from .mamba2 import GatedRMSNorm, Mamba2Mixer
from .norm import LlambaRMSNorm
from .rope import apply_rope, rope_cos_sin


class LlambaAttention(nn.Module):
    """Grouped-query attention, with RoPE or without."""

    def __init__(self, config: LlambaConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.head_dim, self.scale = config.head_dim, config.attention_scale
        q_size, kv_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=config.attention_bias)

    def forward(
        self, u: Tensor, rope: tuple[Tensor, Tensor] | None, causal_mask: Tensor | None = None, handover=None
    ) -> Tensor:
        """u: (batch, L, hidden). rope: cos and sin, (batch, L, rotary_dim). causal_mask: None for plain causal."""
        q, k, v = (
            proj(u).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [batch, heads, L, head_dim]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rope is not None:
            cos, sin = (t.unsqueeze(1) for t in rope)  # [batch, 1, L, rotary_dim]
            q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if handover is not None:
            handover.attention(self.layer_idx, k, v)
        shared = k.shape[1] != q.shape[1]
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=causal_mask, is_causal=causal_mask is None, enable_gqa=shared, scale=self.scale
        )
        return self.o_proj(y.transpose(1, 2).flatten(-2))


class LlambaMLP(nn.Module):
    def __init__(self, config: LlambaConfig):
        super().__init__()
        self.gated = config.mlp_gated
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, u: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(self.act_fn(self.gate_proj(u)) * self.up_proj(u))
        return self.down_proj(self.act_fn(self.up_proj(u)))


class LlambaDecoderLayer(GradientCheckpointingLayer):
    """A token mixer and an MLP, each behind a norm and added to the residual stream; one of the two may be missing."""

    def __init__(self, config: LlambaConfig, layer_idx: int):
        super().__init__()
        self.kind, self.has_mlp = config.layers[layer_idx], config.mlp_layers[layer_idx]
        self.is_mamba = self.kind in ("mamba1", "mamba2")
        self.residual_multiplier = config.residual_multiplier
        if self.is_mamba:
            self.mamba = (Mamba1Mixer if self.kind == "mamba1" else Mamba2Mixer)(config, layer_idx)
        elif self.kind == "attention":
            self.self_attn = LlambaAttention(config, layer_idx)
        if self.has_mlp:
            self.mlp = LlambaMLP(config)
        if self.kind != "none":
            self.input_layernorm = LlambaRMSNorm(config.hidden_size, config.rms_norm_eps)
        if self.has_mlp:
            self.post_attention_layernorm = LlambaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, context: "SequenceContext", handover=None) -> Tensor:
        if self.kind != "none":
            hidden = self.add(hidden, self.mix(self.input_layernorm(hidden), context, handover))
        return self.feed_forward(hidden)

    def mix(self, u: Tensor, context: "SequenceContext", handover=None) -> Tensor:
        """The token mixer alone: what distillation compares between attention and Mamba."""
        if self.is_mamba:
            return self.mamba(u, context.attention_mask, handover)
        return self.self_attn(u, context.rope, context.causal_mask, handover)

    def feed_forward(self, hidden: Tensor) -> Tensor:
        return self.add(hidden, self.mlp(self.post_attention_layernorm(hidden))) if self.has_mlp else hidden

    def add(self, hidden: Tensor, mixed: Tensor) -> Tensor:
        """What the residual stream becomes by a sublayer's output."""
        return hidden + (mixed if self.residual_multiplier == 1 else mixed * self.residual_multiplier)


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
        attends = "attention" in config.layers
        self.rope = rope_cos_sin(config, position_ids) if attends and config.rotary_dim else None
        self.attention_mask = attention_mask
        self.causal_mask = None
        too_long = config.sliding_window is not None and length > config.sliding_window
        if attends and (attention_mask is not None or too_long):
            self.causal_mask = _causal_mask(length, config.sliding_window, attention_mask, hidden.device)


def _causal_mask(length: int, window: int | None, attention_mask: Tensor | None, device) -> Tensor:
    """Which keys each token sees, [1 or batch, 1, L, L]."""
    seen = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    if window is not None:
        seen = seen.triu(1 - window)
    if attention_mask is None:
        return seen[None, None]
    # A padding query sees itself: a row without any key would be NaN, and NaN * 0 is still NaN further on.
    alone = torch.eye(length, dtype=torch.bool, device=device)
    return (seen & attention_mask.bool()[:, None, None, :]) | alone


class LlambaPreTrainedModel(PreTrainedModel):
    config_class = LlambaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlambaDecoderLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, GatedRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, (Mamba1Mixer, Mamba2Mixer)):
            fresh = module.initial_dynamics()
            for name, value in fresh.items():
                init.copy_(module.get_parameter(name), value)


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
                (batch, L, conv_dim) and (batch, L, nheads) and the fp32 state after `handover.fold_point` tokens;
                every mamba1 layer calls `handover.mamba1(layer_idx, x_raw, x, dt, B, state)` with x before the
                convolution, un-repeated, and after it, dt before its bias, and B, all (batch, L, channels).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("LlambaModel: exactly one of input_ids and inputs_embeds must be given")
        hidden = self.scale(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        context = SequenceContext(self.config, hidden, attention_mask, position_ids)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, context, handover)
            if output_hidden_states:
                states.append(hidden)
        hidden = self.norm(hidden)
        # As in transformers: the embedding, then each layer's output, the last one after the final norm.
        return BaseModelOutput(hidden, hidden_states=(*states[:-1], hidden) if output_hidden_states else None)

    def scale(self, embedded: Tensor) -> Tensor:
        """What the first layer sees of embedded tokens."""
        factor = self.config.embedding_multiplier
        return embedded if factor == 1 else embedded * factor


class LlambaForCausalLM(LlambaPreTrainedModel, GenerationMixin):
    """transformers' `generate` works on it, on the CPU with a `GenerationCache`, assisted decoding and beams included.

    `llamba_kernels.SpeculativeDecoder` is faster: its buffers stay from call to call, and between two steps it does
    little.
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
        use_cache: bool | None = None,
        return_dict: bool = True,
        **loss_kwargs,
    ) -> CausalLMOutputWithPast:
        """As `transformers.LlamaForCausalLM.forward`; `handover` as in `LlambaModel.forward`.

        With past_key_values, a `GenerationCache`, input_ids continue its sequences; without one there is no cache,
        whatever use_cache says. Raises ValueError and TypeError.
        """
        if past_key_values is not None:
            logits = self._forward_with_cache(
                past_key_values, input_ids, attention_mask, logits_to_keep, labels, output_hidden_states
            )
            output = CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
            return output if return_dict else output.to_tuple()
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds, output_hidden_states, handover)
        logits = self.head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=outputs.hidden_states)
        return output if return_dict else output.to_tuple()

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of what the final norm gives."""
        logits, divisor = self.lm_head(hidden), self.config.logits_divisor
        return logits if divisor == 1 else logits / divisor

    @staticmethod
    def _forward_with_cache(cache, input_ids, attention_mask, logits_to_keep, labels, output_hidden_states) -> Tensor:
        from .generation import GenerationCache  # here, because it needs the step, which needs this module

        if not isinstance(cache, GenerationCache):
            raise TypeError(f"forward: past_key_values must be a GenerationCache; got {type(cache).__name__}")
        if input_ids is None or labels is not None or output_hidden_states or isinstance(logits_to_keep, Tensor):
            raise ValueError(
                "forward: with past_key_values there must be input_ids and neither labels nor output_hidden_states nor "
                "a tensor as logits_to_keep; got another call"
            )
        return cache.forward(input_ids, attention_mask, logits_to_keep)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ) -> None:
        """transformers' hook: what `generate` uses as past_key_values unless it is given one or told not to."""
        from .generation import GenerationCache

        cache = model_kwargs.get("past_key_values")
        rollback = (generation_config.max_new_tokens or 0) if generation_config.is_assistant else 0
        if cache is None and generation_config.use_cache is not False:
            wanted = model_kwargs.get("inputs_embeds") is not None or generation_config.output_hidden_states
            if wanted or not GenerationCache.supports(self):  # every step recomputes the sequence
                generation_config.use_cache = False  # generate's own copy; it sets model_kwargs by it after this hook
                return
            batch_size *= max(generation_config.num_beams, generation_config.num_return_sequences)
            cache = model_kwargs["past_key_values"] = GenerationCache(self, batch_size, max_cache_length)
        if isinstance(cache, GenerationCache):
            cache.reserve(max_cache_length, rollback)


AutoConfig.register(LlambaConfig.model_type, LlambaConfig)
AutoModelForCausalLM.register(LlambaConfig, LlambaForCausalLM)
