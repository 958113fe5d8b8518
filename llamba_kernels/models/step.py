"""One decoding step of a model: a few new tokens per sequence against a cache. Plain decoding is the one-token case.

Every operation gives a token the same bits however many tokens share the step: that is what the operators promise, and
an addition does by itself, as a multiplication. So speculative and plain greedy decoding agree exactly. What the parts
of a layer do is in step_layers.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ..cache import DecodeCache, SavedSlot
from ..capture import Capture
from . import step_layers
from .mamba1 import Mamba1Mixer
from .mamba2 import GatedRMSNorm
from .model import LlambaForCausalLM
from .norm import LlambaRMSNorm
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
    step of each shape and from then on replayed, without Python or torch between them; only what torch computes, some
    activations and the multipliers, cuts a capture in two and allocates a little.
    """

    def __init__(self, model: LlambaForCausalLM, cache: DecodeCache):
        self.model = model
        self.cache = cache
        self.config = model.config
        if "attention" in self.config.layers and self.config.rotary_dim:
            # One table for all steps: computing an angle alone or among others may differ in the last bit.
            cos, sin = rope_cos_sin(self.config, torch.arange(cache.max_tokens))  # [max_tokens, rotary_dim]
            self.cos, self.sin = (table[:, : self.config.rotary_dim // 2].contiguous() for table in (cos, sin))
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
        self._programs: dict[tuple[int, int], list[Capture | Callable[[], object]]] = {}
        self.dynamics = [step_layers.dynamics_of(layer) for layer in self.model.model.layers]
        self._ones = torch.ones(max(self.config.mamba1_selection_sizes), dtype=self.dtype)

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
        program = self._programs.get((batch, window))
        if program is None:
            self._programs[batch, window] = self._first(space)
        else:
            self._replay(program)
        if self.config.logits_divisor != 1:
            space.logits.div_(self.config.logits_divisor)
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
        if self.config.embedding_multiplier != 1:
            out.mul_(self.config.embedding_multiplier)

    def _first(self, space: Space) -> list[Capture | Callable[[], object]]:
        """Run a shape's step operator by operator; returns what repeats it."""
        held = [parameter.detach() for parameter in self.model.parameters()], self.dynamics, self._ones
        layers, program, by_torch = self._layers(space), [], []
        while by_torch != [None]:
            by_torch = []
            program.append(Capture(lambda found=by_torch: found.append(next(layers, None)), held))
            if by_torch[0] is not None:
                by_torch[0]()
                program.append(by_torch[0])
        return program

    def _replay(self, program: list[Capture | Callable[[], object]]) -> None:
        for part in program:
            if not isinstance(part, Capture):
                part()
            elif self.seconds is None:
                part.replay()
            else:
                part.timed_replay(self.seconds)

    def _layers(self, space: Space) -> Iterator[Callable[[], object]]:
        """From space.hidden to space.logits, by operators; yields what torch is to do between two of them."""
        hidden, u, mixed = space.hidden, space.u, space.mixed
        factor = self.config.residual_multiplier
        scale = [] if factor == 1 else [partial(mixed.mul_, factor)]
        residual = None  # what the last sublayer gave is added to hidden by the next norm
        for layer, buffers, dynamics in zip(self.model.model.layers, self.cache.layers, self.dynamics, strict=True):
            if layer.kind != "none":
                step_layers.add_and_norm(layer.input_layernorm, residual, hidden, u)
                mixer = layer.mamba if layer.is_mamba else layer.self_attn
                step_layers.MIXERS[layer.kind](self, mixer, dynamics, buffers, space)
                residual = mixed
                yield from scale
            if layer.has_mlp:
                step_layers.add_and_norm(layer.post_attention_layernorm, residual, hidden, u)
                yield from step_layers.mlp(self, layer.mlp, space)
                residual = mixed
                yield from scale
        step_layers.add_and_norm(self.model.model.norm, residual, hidden, u)
        step_layers.linear(self.model.lm_head, u, space.logits)

    def inner_norms(self, mixer: Mamba1Mixer) -> list[Tensor]:
        """The weights of a Mamba-1 mixer's norms of dt_proj's input, B and C; empty if it has none."""
        if mixer.inner_norm == "weighted":
            return [norm.weight for norm in (mixer.dt_layernorm, mixer.B_layernorm, mixer.C_layernorm)]
        return [self._ones[:size] for size in mixer.selection_sizes] if mixer.inner_norm == "plain" else []

    @torch.inference_mode()
    def materialize(self, slot: int) -> SavedSlot:
        """What all layers know of a slot between two steps, for `DecodeCache.state_import`: prefix caches, export."""
        self.cache.check_slot("materialize", slot)
        layers = zip(self.model.model.layers, self.dynamics, self.cache.layers, strict=True)
        saved = [step_layers.save_layer(self, *layer, slot) for layer in layers]
        return SavedSlot(self.cache.cursor.position(slot), saved)

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
