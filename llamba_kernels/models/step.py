"""One decoding step of the hybrid: a few new tokens per sequence against a cache. Plain decoding is the one-token case.

Every operation gives a token the same bits however many tokens share the step: that is what the operators promise, and
an addition does by itself. So speculative and plain greedy decoding agree exactly.
"""

from collections import Counter

import torch
from torch import Tensor, nn

from ..cache import AttentionBuffers, DecodeCache, Mamba2Buffers, SavedSlot
from ..capture import Capture
from ..ops import attention_step, gated_rms_norm, mamba2_verify, materialize, rms_norm, rope, silu_mul, skinny_linear
from .mamba2 import GatedRMSNorm, Mamba2Mixer
from .model import LlambaAttention, LlambaForCausalLM, LlambaMLP, LlambaRMSNorm
from .rope import rope_cos_sin
from .workspace import Space, Workspace

READ = (nn.Embedding, nn.Linear, nn.Conv1d, LlambaRMSNorm, GatedRMSNorm)


def altered_module(model: LlambaForCausalLM) -> str | None:
    """The first module that is more than the weights it owns, as "name (type)"; None: a step may read them directly.

    An adapter adds to what a Linear computes; a parametrized or pruned weight is made anew by a forward, so that its
    address is soon somebody else's.
    """
    for name, module in model.named_modules():
        read = {each for each in ("weight", "bias") if getattr(module, each, None) is not None}
        if read and not (type(module) in READ and read <= module._parameters.keys()):
            return f"{name} ({type(module).__name__})"
    return None


class StepModel:
    """Binds a model to a cache. Call it between `cursor.begin` and `cursor.commit`.

    The weights are read in place, in their own dtype; only A, D and dt_bias are taken in fp32, by `bind`, which whoever
    changes the model calls again. All memory of a step is allocated here. A step's operators are captured at the first
    step of each shape and from then on replayed, without Python or torch between them.
    """

    def __init__(self, model: LlambaForCausalLM, cache: DecodeCache):
        self.model = model
        self.cache = cache
        self.config = model.config
        # One table for all steps: computing an angle alone or among others may differ in the last bit.
        cos, sin = rope_cos_sin(model.config, torch.arange(cache.max_tokens))  # [max_tokens, head_dim]: halves repeat
        self.cos, self.sin = (table[:, : model.config.head_dim // 2].contiguous() for table in (cos, sin))
        self.dtype = model.dtype
        self.workspace = Workspace(model.config, self.dtype, cache.cursor.table.shape[0], cache.session.max_window)
        self.seconds: Counter | None = None  # by operator, while somebody wants to know: `speculative.profile`
        self.bind()

    def bind(self) -> None:
        """Take the parameters as they are now, by where they lie; A, and what of D and dt_bias is not fp32, by value.

        Raises: ValueError (another dtype or device than at first, an `altered_module`); then nothing changes.
        """
        ours, theirs = f"{self.dtype} on cpu", f"{self.model.dtype} on {self.model.device.type}"
        if ours != theirs:
            raise ValueError(f"step: model must be {ours}, as its buffers are; got {theirs}".replace("torch.", ""))
        if altered := altered_module(self.model):
            raise ValueError(
                "step: model must be of plain modules that own their weights, which a step reads where they lie (merge "
                f"adapters, remove parametrizations and pruning); got {altered}"
            )
        self._captures: dict[tuple[int, int], Capture] = {}
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
        Rows beyond a step's ntokens, and those of padding, mean nothing. The next step overwrites the logits.
        """
        if tokens.dim() != 2 or tokens.dtype != torch.int64 or slots.shape != tokens.shape[:1]:
            raise ValueError(
                "step: tokens must be (batch, window) int64 and slots (batch); "
                f"got {tuple(tokens.shape)} {str(tokens.dtype).removeprefix('torch.')} and {tuple(slots.shape)}"
            )
        batch, window = tokens.shape
        space = self.workspace.of(batch, window)
        self._set_positions(space.positions, slots.tolist(), window)
        space.slots.copy_(slots)
        self._embed(tokens, space.hidden)
        capture = self._captures.get((batch, window))
        if capture is None:
            self._first(space, (batch, window))
        elif self.seconds is None:
            capture.replay()
        else:
            capture.timed_replay(self.seconds)
        return space.logits

    def _embed(self, tokens: Tensor, out: Tensor) -> None:
        table = self.model.model.embed_tokens.weight
        try:
            torch.index_select(table, 0, tokens.flatten(), out=out.flatten(0, 1))
        except IndexError:  # checking every id of every step beforehand would cost more than a norm
            raise ValueError(
                f"step: tokens must be ids from 0 to vocab_size - 1 = {len(table) - 1}; "
                f"got {int(tokens.min())} to {int(tokens.max())}"
            ) from None

    def _first(self, space: Space, shape: tuple[int, int]) -> None:
        """Run a shape's step operator by operator; all later ones replay it, unless torch computes the activation."""
        if not self._is_silu:
            return self._layers(space)
        held = [parameter.detach() for parameter in self.model.parameters()], self.dynamics
        self._captures[shape] = Capture(lambda: self._layers(space), held)

    def _layers(self, space: Space) -> None:
        """From space.hidden to space.logits."""
        hidden, u, mixed = space.hidden, space.u, space.mixed
        residual = None  # what the last sublayer gave is added to hidden by the next norm
        for layer, buffers, dynamics in zip(self.model.model.layers, self.cache.layers, self.dynamics, strict=True):
            self._add_and_norm(layer.input_layernorm, residual, hidden, u)
            if layer.is_mamba:
                self._mamba2(layer.mamba, dynamics, buffers, space)
            else:
                self._attention(layer.self_attn, buffers, space)
            residual = mixed
            self._add_and_norm(layer.post_attention_layernorm, residual, hidden, u)
            self._mlp(layer.mlp, space)
        self._add_and_norm(self.model.model.norm, residual, hidden, u)
        head = self.model.lm_head
        skinny_linear(u, head.weight, head.bias, out=space.logits)

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

    def _set_positions(self, positions: Tensor, slots: list[int], window: int) -> None:
        """positions (batch, window) int32: of every token of the open steps; -1 for what is none."""
        positions.fill_(-1)
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
            torch.arange(position, position + ntokens, out=positions[i, :ntokens])

    @property
    def _is_silu(self) -> bool:
        return self.config.hidden_act in ("silu", "swish")

    @staticmethod
    def _add_and_norm(norm, mixed: Tensor | None, hidden: Tensor, out: Tensor) -> None:
        """hidden += mixed, in place; out is the norm of the sum."""
        if mixed is None:
            rms_norm(hidden, norm.weight, norm.eps, out=out)
        else:
            rms_norm(mixed, norm.weight, norm.eps, hidden, out=out)

    def _mamba2(self, mixer: Mamba2Mixer, dynamics, buffers: Mamba2Buffers, space: Space) -> None:
        """space.u to space.mixed."""
        skinny_linear(space.u, mixer.in_proj.weight, out=space.projected)
        mamba2_verify(
            *(space.xBC, space.dt, mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, *dynamics),
            *(buffers.checkpoint, buffers.rows, buffers.dt_rows, self.cache.cursor.table, space.slots),
            x_heads=self.config.mamba_x_heads,
            B_heads=self.config.mamba_B_heads,
            C_heads=self.config.mamba_C_heads,
            fold_every=self.cache.session.fold_every,
            out=space.ssm.unflatten(-1, (mixer.num_heads, mixer.head_dim)),
        )
        norm = mixer.norm
        gated_rms_norm(space.ssm, space.z, norm.weight, norm.eps, norm.group_size, out=space.ssm)
        skinny_linear(space.ssm, mixer.out_proj.weight, out=space.mixed)

    def _attention(self, attention: LlambaAttention, buffers: AttentionBuffers, space: Space) -> None:
        """space.u to space.mixed."""
        q, k, v = space.q, space.k, space.v
        for proj, out in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v)):
            skinny_linear(space.u, proj.weight, proj.bias, out=out)
        q, k, v, qk = (heads.unflatten(-1, (-1, attention.head_dim)) for heads in (q, k, v, space.qk))
        rope(qk, self.cos, self.sin, space.positions, out=qk)
        y = space.attended.unflatten(-1, (-1, attention.head_dim))
        attention_step(q, k, v, buffers.k, buffers.v, self.cache.cursor.table, space.slots, out=y)
        skinny_linear(space.attended, attention.o_proj.weight, attention.o_proj.bias, out=space.mixed)

    def _mlp(self, mlp: LlambaMLP, space: Space) -> None:
        """space.u to space.mixed."""
        gate, up = space.gate, space.up
        skinny_linear(space.u, mlp.gate_proj.weight, mlp.gate_proj.bias, out=gate)
        skinny_linear(space.u, mlp.up_proj.weight, mlp.up_proj.bias, out=up)
        if self._is_silu:
            silu_mul(gate, up, out=up)
        else:
            # Token by token: torch's vectorised activations treat the last few elements of a tensor by another formula.
            for gate_row, up_row in zip(gate.flatten(0, 1), up.flatten(0, 1), strict=True):
                up_row.mul_(mlp.act_fn(gate_row))
        skinny_linear(up, mlp.down_proj.weight, mlp.down_proj.bias, out=space.mixed)
