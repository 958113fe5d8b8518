"""What decoding remembers: per slot a recurrent checkpoint, a few rows of raw inputs, KV entries, and one cursor."""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from . import ops
from .fold import choose_fold_every
from .models.config import LlambaConfig

CURSOR_HEADER = 4  # position, live, fold, ntokens: see csrc/include/llamba.h
MOST = 1 << 20  # of each of a session's constants, as the cursor ops have it: far above any use
INT32_MAX = 2**31 - 1
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_int(what: str, value: int, least: int, most: int) -> None:
    """what: owner and argument, as in "Session: max_window"."""
    if not isinstance(value, Integral):
        raise TypeError(f"{what} must be an int; got {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{what} must be {least} to {most}; got {value}")


def check_dtype(what: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"{what} must be float32, bfloat16 or float16; got {str(dtype).removeprefix('torch.')}")


@dataclass(frozen=True)
class Session:
    """Constants that size the buffers of a decoding session.

    Args:
        max_window: most tokens in a step, the pending one included.
        fold_every: W; the checkpoint advances in multiples of it. Every row that is not folded yet is replayed each
            step; 1 replays least and writes the checkpoint on every step. `fold.choose_fold_every` chooses.
        max_rollback: committed tokens that may still be taken back.
        width: conv width of the model's Mamba-2 layers.
    """

    max_window: int = 8
    fold_every: int = 1
    max_rollback: int = 0
    width: int = 4

    def __post_init__(self):
        check_int("Session: max_window", self.max_window, 1, MOST)
        check_int("Session: fold_every", self.fold_every, 1, MOST)
        check_int("Session: max_rollback", self.max_rollback, 0, MOST)
        check_int("Session: width", self.width, 2, 4)

    @property
    def capacity(self) -> int:
        """Physical rows per slot: a step reads the rows that it folds while it writes the new ones."""
        return self.width - 1 + self.fold_every - 1 + self.max_rollback + 2 * self.max_window

    def fold_point(self, prompt: int) -> int:
        """Where the checkpoint stands after a prefill of `prompt` tokens."""
        return max(0, (prompt - self.max_rollback) // self.fold_every * self.fold_every)


class Cursor:
    """The step protocol of all slots: reset, then begin and commit around every step. One cursor serves all layers."""

    def __init__(self, nslots: int, session: Session, device: torch.device | str = "cpu"):
        check_int("Cursor: nslots", nslots, 1, INT32_MAX)
        if not isinstance(session, Session):
            raise TypeError(f"Cursor: session must be a Session; got {type(session).__name__}")
        self.session = session
        entries = CURSOR_HEADER + session.width - 1 + session.capacity
        self.table = torch.zeros(nslots, entries, dtype=torch.int32, device=device)
        self.constants = {
            "width": session.width,
            "fold_every": session.fold_every,
            "max_rollback": session.max_rollback,
            "max_window": session.max_window,
        }
        self.reset(torch.arange(nslots, dtype=torch.int32, device=device))

    def reset(self, slots: Tensor, prompt: Tensor | None = None) -> None:
        """Fresh slots, or (prompt: tokens per slot) slots that a prefill has filled."""
        ops.cursor_reset(self.table, slots, prompt, **self.constants)

    def begin(self, slots: Tensor, ntokens: Tensor) -> None:
        ops.cursor_begin(self.table, slots, ntokens, **self.constants)

    def commit(self, slots: Tensor, accepted: Tensor, path: Tensor | None = None) -> None:
        ops.cursor_commit(self.table, slots, accepted, path, width=self.session.width)

    def rollback(self, slots: Tensor, n: Tensor) -> None:
        ops.cursor_rollback(self.table, slots, n, **self.constants)

    def position(self, slot: int) -> int:
        return int(self.table[slot, 0])


@dataclass
class Mamba2Buffers:
    checkpoint: Tensor  # [nslots, nheads, headdim, dstate] fp32, bf16 or fp16
    rows: Tensor  # [nslots, capacity, conv_dim] raw xBC of in_proj
    dt_rows: Tensor  # [nslots, capacity, nheads] raw dt of in_proj


@dataclass
class AttentionBuffers:
    k: Tensor  # [nslots, kv_heads, max_tokens, head_dim], after RoPE
    v: Tensor  # [nslots, kv_heads, max_tokens, head_dim]


@dataclass
class SavedSlot:
    """One sequence outside any cache: `StepModel.materialize` makes it, `DecodeCache.state_import` takes it."""

    position: int
    layers: list[tuple[Tensor, Tensor]]  # Mamba-2: state, conv tail; attention: k, v [kv_heads, position, head_dim]


class DecodeCache:
    """Buffers of `nslots` sequences of up to `max_tokens` tokens for one model; allocated once, here.

    A rejected token costs nothing to take back: its row becomes free and its KV entry is overwritten.

    Args:
        session: None: the widest window is 8, and fold_every is chosen for this model and these dtypes.
        dtype: of rows, k and v: the model's. checkpoint_dtype: of the recurrent states.
    """

    def __init__(
        self,
        config: LlambaConfig,
        max_tokens: int,
        session: Session | None = None,
        nslots: int = 1,
        dtype: torch.dtype = torch.float32,
        checkpoint_dtype: torch.dtype = torch.float32,
    ):
        check_int("DecodeCache: max_tokens", max_tokens, 1, INT32_MAX)
        check_int("DecodeCache: nslots", nslots, 1, INT32_MAX)
        check_dtype("DecodeCache: dtype", dtype)
        check_dtype("DecodeCache: checkpoint_dtype", checkpoint_dtype)
        if beyond := not_decoded(config):
            raise ValueError(f"DecodeCache: config must be of a model that decoding runs; got {beyond}")
        if session is None:
            fold_every = fold_every_for(config, checkpoint_dtype)
            session = Session(fold_every=fold_every, width=config.mamba_d_conv)
        if session.width != config.mamba_d_conv:
            raise ValueError(
                f"DecodeCache: session.width must be the model's mamba_d_conv = {config.mamba_d_conv}; "
                f"got {session.width}"
            )
        self.session = session
        self.max_tokens = max_tokens
        self.cursor = Cursor(nslots, session)
        state = (nslots, config.mamba_num_heads, config.mamba_head_dim, config.mamba_d_state)
        rows = (nslots, session.capacity)
        kv = (nslots, config.num_key_value_heads, max_tokens, config.head_dim)
        self.layers: list[Mamba2Buffers | AttentionBuffers] = [
            Mamba2Buffers(
                checkpoint=torch.zeros(state, dtype=checkpoint_dtype),
                rows=torch.zeros(*rows, config.mamba_conv_dim, dtype=dtype),
                dt_rows=torch.zeros(*rows, config.mamba_num_heads, dtype=dtype),
            )
            if kind == "mamba2"
            else AttentionBuffers(k=torch.zeros(kv, dtype=dtype), v=torch.zeros(kv, dtype=dtype))
            for kind in config.layers
        ]

    @torch.inference_mode()
    def prefill(self, model, slot: int, prompt: Tensor) -> Tensor:
        """Run a prompt, (P,) int64, into `slot`. Returns the logits after its last token, (vocab,)."""
        self.check_slot("prefill", slot)
        if prompt.dim() != 1 or prompt.dtype != torch.int64:
            got = f"{tuple(prompt.shape)} {str(prompt.dtype).removeprefix('torch.')}"
            raise ValueError(f"prefill: prompt must be (P,) int64; got {got}")
        length = prompt.shape[0]
        if not 1 <= length <= self.max_tokens:
            raise ValueError(f"prefill: prompt must have 1 to max_tokens = {self.max_tokens} tokens; got {length}")
        vocab = model.config.vocab_size
        if int(prompt.min()) < 0 or int(prompt.max()) >= vocab:
            raise ValueError(
                f"prefill: prompt must hold ids from 0 to vocab_size - 1 = {vocab - 1}; "
                f"got {int(prompt.min())} to {int(prompt.max())}"
            )
        slots = torch.tensor([slot], dtype=torch.int32)
        self.cursor.reset(slots)  # if the forward fails, the slot is left fresh
        handover = _Handover(self, slot, length)
        logits = model(prompt.unsqueeze(0), logits_to_keep=1, handover=handover).logits[0, -1]
        self.cursor.reset(slots, torch.tensor([length], dtype=torch.int32))
        return logits

    def slot_copy(self, src: Tensor, dst: Tensor) -> None:
        """Slots dst become copies of slots src, (batch) int32 each: beams, several samples of one prompt."""
        states, kv = [], []
        for buffers in self.layers:
            if isinstance(buffers, Mamba2Buffers):
                states += [buffers.checkpoint, buffers.rows, buffers.dt_rows]
            else:
                kv += [buffers.k, buffers.v]
        ops.slot_copy(self.cursor.table, states, kv, src, dst, width=self.session.width)

    @torch.inference_mode()
    def state_import(self, slot: int, saved: SavedSlot) -> None:
        """Put a saved sequence into a slot, of this cache or of another for the same model.

        Decoding goes on with the bits it would have had, if the checkpoints are float32 or the saved position is a
        multiple of fold_every; what is before that position cannot be rolled back. An import that is refused for its
        slot, its length or its number of layers changes nothing; one that fails in a layer leaves the slot fresh.
        """
        self.check_slot("state_import", slot)
        if len(saved.layers) != len(self.layers):
            raise ValueError(
                f"state_import: saved must have the model's {len(self.layers)} layers; got {len(saved.layers)}"
            )
        if saved.position > self.max_tokens:
            raise ValueError(
                f"state_import: saved must have at most max_tokens = {self.max_tokens} tokens; got {saved.position}"
            )
        slots, constants = torch.tensor([slot], dtype=torch.int32), self.cursor.constants
        position = torch.tensor([saved.position], dtype=torch.int32)
        ops.cursor_reset(self.cursor.table, slots, position, **(constants | {"fold_every": 1, "max_rollback": 0}))
        try:
            for buffers, layer in zip(self.layers, saved.layers, strict=True):
                self._import_layer(buffers, slots, saved.position, *layer)
        except BaseException:
            self.cursor.reset(slots)  # not a mix of two sequences: fresh
            raise

    def _import_layer(self, buffers, slots: Tensor, position: int, first: Tensor, second: Tensor) -> None:
        if isinstance(buffers, Mamba2Buffers):
            state, tail = first.unsqueeze(0), second.unsqueeze(0)
            ops.state_import(state, tail, buffers.checkpoint, buffers.rows, self.cursor.table, slots)
            return
        for name, cache, kept in (("k", buffers.k, first), ("v", buffers.v, second)):
            rows = cache[int(slots), :, :position]
            if kept.shape != rows.shape or kept.dtype != rows.dtype:
                raise ValueError(
                    f"state_import: saved {name} must be {tuple(rows.shape)} of {rows.dtype}; "
                    f"got {tuple(kept.shape)} of {kept.dtype}"
                )
            rows.copy_(kept)

    def check_slot(self, op: str, slot: int) -> None:
        nslots = self.cursor.table.shape[0]
        if not 0 <= slot < nslots:
            raise ValueError(f"{op}: slot must be 0 to {nslots - 1}; got {slot}")


def not_decoded(config: LlambaConfig) -> str | None:
    """What of a model the full-sequence forward has, and decoding has not."""
    plain = {
        "layers": all(kind in ("attention", "mamba2") for kind in config.layers),
        "mlp_layers": all(config.mlp_layers),
        "mlp_gated": config.mlp_gated,
        "rotary_dim": config.rotary_dim == config.head_dim,
        "sliding_window": config.sliding_window is None,
        "embedding_multiplier": config.embedding_multiplier == 1,
        "residual_multiplier": config.residual_multiplier == 1,
        "logits_divisor": config.logits_divisor == 1,
        "mamba_proj_bias": not config.mamba_proj_bias,
        "attention_scale": config.attention_scale == config.head_dim**-0.5,
    }
    return next((f"{name} = {getattr(config, name)}" for name, ok in plain.items() if not ok), None)


def fold_every_for(config: LlambaConfig, checkpoint_dtype: torch.dtype = torch.float32) -> int:
    """The W that `choose_fold_every` gives for a model's Mamba-2 layers: one sequence, steps of up to 8 tokens.

    It does not ask for the session's own window and slots: W decides where a prefill hands over, and with that the bits
    of all that follows, which are to be the same in every window and batch.
    """
    state = config.mamba_num_heads * config.mamba_head_dim * config.mamba_d_state * checkpoint_dtype.itemsize
    nbytes = config.layers.count("mamba2") * state
    return choose_fold_every("cpu", "mamba2", checkpoint_dtype, nbytes, Session.max_window)


class _Handover:
    """Receives a prompt's forward pass and lays it out as `cursor_reset(prompt=P)` describes it."""

    def __init__(self, cache: DecodeCache, slot: int, prompt: int):
        self.cache, self.slot, self.prompt = cache, slot, prompt
        self.fold_point = cache.session.fold_point(prompt)

    def attention(self, layer_idx: int, k: Tensor, v: Tensor) -> None:
        buffers = self.cache.layers[layer_idx]
        buffers.k[self.slot, :, : self.prompt] = k[0]
        buffers.v[self.slot, :, : self.prompt] = v[0]

    def mamba2(self, layer_idx: int, xBC: Tensor, dt: Tensor, state: Tensor) -> None:
        buffers = self.cache.layers[layer_idx]
        first = max(0, self.fold_point - (self.cache.session.width - 1))  # the conv tail, then the live rows
        buffers.rows[self.slot, : self.prompt - first] = xBC[0, first:]
        buffers.dt_rows[self.slot, : self.prompt - first] = dt[0, first:]
        if self.fold_point > 0:
            buffers.checkpoint[self.slot] = state[0]
