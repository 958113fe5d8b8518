"""What decoding remembers: per slot a recurrent checkpoint, a few rows of raw inputs, KV entries, and one cursor."""

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from . import ops
from .buffers import AttentionBuffers, Mamba1Buffers, NoBuffers, make_buffers
from .fold import choose_fold_every_of
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
        width: conv width of the model's Mamba layers.
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
class SavedSlot:
    """One sequence outside any cache: `StepModel.materialize` makes it, `DecodeCache.state_import` takes it."""

    position: int
    layers: list[tuple[Tensor, ...]]  # Mamba: state, conv tail; attention: k, v [kv_heads, position, head_dim]


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
        sizes = nslots, max_tokens, session.capacity
        self.layers = [make_buffers(config, kind, *sizes, dtype, checkpoint_dtype) for kind in config.layers]

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
            (kv if isinstance(buffers, AttentionBuffers) else states).extend(vars(buffers).values())
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

    def _import_layer(self, buffers, slots: Tensor, position: int, *saved: Tensor) -> None:
        if isinstance(buffers, NoBuffers):
            return
        first, second = saved
        if not isinstance(buffers, AttentionBuffers):
            state, tail, checkpoint = first.unsqueeze(0), second.unsqueeze(0), buffers.checkpoint
            if isinstance(buffers, Mamba1Buffers):  # to the operator, one head of d_inner channels
                state, checkpoint = state.unsqueeze(1), checkpoint.unsqueeze(1)
            ops.state_import(state, tail, checkpoint, buffers.rows, self.cursor.table, slots)
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


def fold_every_for(config: LlambaConfig, checkpoint_dtype: torch.dtype = torch.float32) -> int:
    """The W that `choose_fold_every_of` gives for a model's Mamba layers: one sequence, steps of up to 8 tokens.

    It does not ask for the session's own window and slots: W decides where a prefill hands over, and with that the bits
    of all that follows, which are to be the same in every window and batch.
    """
    elements = {
        "mamba1": config.mamba1_d_inner * config.mamba1_d_state,
        "mamba2": config.mamba_d_inner * config.mamba_d_state,
    }
    nbytes = {kind: config.layers.count(kind) * size * checkpoint_dtype.itemsize for kind, size in elements.items()}
    return choose_fold_every_of("cpu", nbytes, checkpoint_dtype, Session.max_window)


class _Handover:
    """Receives a prompt's forward pass and lays it out as `cursor_reset(prompt=P)` describes it."""

    def __init__(self, cache: DecodeCache, slot: int, prompt: int):
        self.cache, self.slot, self.prompt = cache, slot, prompt
        self.fold_point = cache.session.fold_point(prompt)

    def attention(self, layer_idx: int, k: Tensor, v: Tensor) -> None:
        buffers = self.cache.layers[layer_idx]
        buffers.k[self.slot, :, : self.prompt] = k[0]
        buffers.v[self.slot, :, : self.prompt] = v[0]

    def mamba1(self, layer_idx: int, x_raw: Tensor, x: Tensor, dt: Tensor, B: Tensor, state: Tensor) -> None:
        buffers = self.cache.layers[layer_idx]
        self._fill(buffers, state, {"rows": x_raw, "x_rows": x, "dt_rows": dt, "B_rows": B})

    def mamba2(self, layer_idx: int, xBC: Tensor, dt: Tensor, state: Tensor) -> None:
        self._fill(self.cache.layers[layer_idx], state, {"rows": xBC, "dt_rows": dt})

    def _fill(self, buffers, state: Tensor, rows: dict[str, Tensor]) -> None:
        first = max(0, self.fold_point - (self.cache.session.width - 1))  # the conv tail, then the live rows
        for name, values in rows.items():
            getattr(buffers, name)[self.slot, : self.prompt - first] = values[0, first:]
        if self.fold_point > 0:
            buffers.checkpoint[self.slot] = state[0]
