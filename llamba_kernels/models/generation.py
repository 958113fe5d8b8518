"""The cache behind `model.generate`: transformers' own greedy search, sampling, beams and assisted decoding.

transformers rolls a cache back by cropping it, which no recurrent state can; a cursor can. So prompt lookup
(`prompt_lookup_num_tokens=`) and assistants (`assistant_model=`) work here as they do for a Transformer.
"""

import torch
from torch import Tensor

from ..cache import DTYPES, DecodeCache, Session, fold_every_for
from .step import StepModel

FIRST_WINDOW = 8  # tokens of a step until a forward brings more


class GenerationCache:
    """Sequences of one `generate` call, or of several that pass it on; every forward appends tokens to all of them.

    The last forward's tokens stay an open step until the next forward, so that cropping them costs nothing. What is
    cropped beyond them (an assistant's drafts, a forward each) is taken back from the rows that `reserve` asked for.

    Args:
        model: a LlambaForCausalLM on the CPU, fp32, bf16 or fp16.
        batch: sequences. max_tokens: tokens of each that there is room for at first.
    """

    is_compileable = False
    is_croppable = True

    def __init__(self, model, batch: int, max_tokens: int):
        self.model, self.batch = model, batch
        self.length = 0  # tokens of every sequence, its left padding included, as transformers counts
        self._recording = False
        self._open = 0  # tokens of the step that is not committed yet
        self._slots = torch.arange(batch, dtype=torch.int32)
        self._build(batch, max_tokens, FIRST_WINDOW, 0)

    @staticmethod
    def supports(model) -> bool:
        return model.device.type == "cpu" and model.dtype in DTYPES

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self._cache.max_tokens

    def activate_past_recording(self) -> None:
        """From now on the tokens of a whole forward, however many, can be cropped."""
        self._recording = True

    def crop(self, tokens_to_remove: int) -> None:
        """crop(-n): every sequence forgets its last n tokens."""
        n = -tokens_to_remove
        live = int(self._cache.cursor.table[self._slots.long(), 1].min())
        most = self._open + min(live, self._session.max_rollback)
        if not 0 <= n <= most:
            raise ValueError(
                f"crop: tokens_to_remove must be -{most} to 0, what can be taken back; got {tokens_to_remove}"
            )
        self.length -= n
        from_step = min(n, self._open)
        self._commit(self._open - from_step)
        if n > from_step:
            self._cache.cursor.rollback(self._slots, self._each(n - from_step))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence i becomes what sequence beam_idx[i] was. Beams take turns in two banks of slots."""
        self._commit(self._open)
        if self._nslots < 2 * self.batch:
            self._rebuild(2 * self.batch, self._cache.max_tokens, self._session.max_window, self._session.max_rollback)
        source = self._slots[beam_idx.long()]
        self._slots = (self._slots + self.batch) % (2 * self.batch)
        self._cache.slot_copy(source, self._slots)

    # What the model's forward asks of it.

    def reserve(self, max_tokens: int, max_rollback: int) -> None:
        """Make room for longer sequences and for crops over several forwards."""
        if max_tokens > self._cache.max_tokens or max_rollback > self._session.max_rollback:
            max_tokens = max(max_tokens, self._cache.max_tokens)
            max_rollback = max(max_rollback, self._session.max_rollback)
            self._rebuild(self._nslots, max_tokens, max(self._session.max_window, max_rollback), max_rollback)

    @torch.inference_mode()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, logits_to_keep: int) -> Tensor:
        """Append input_ids, (batch, n), to the sequences; logits (batch, logits_to_keep, vocab) of the last of them.

        attention_mask is read in the first forward alone: (batch, n), 0 on left padding.
        """
        batch, n = input_ids.shape
        keep = logits_to_keep or n
        if batch != self.batch:
            raise ValueError(f"forward: input_ids must be of the cache's {self.batch} sequences; got {batch}")
        self.reserve(self.length + n, 0)  # drafts may reach beyond the longest output
        logits = []
        if self.length == 0:
            prefix = n - keep + 1  # whose last logits are the first that are kept
            logits.append(self._prefill(input_ids[:, :prefix], attention_mask, keep).unsqueeze(1))
            input_ids = input_ids[:, prefix:]
        if self._recording and input_ids.shape[1] > self._session.max_window:
            self._commit(self._open)
            self._rebuild(self._nslots, self._cache.max_tokens, input_ids.shape[1], self._session.max_rollback)
        for window in input_ids.split(self._session.max_window, dim=1) if input_ids.shape[1] else ():
            self._commit(self._open)
            self._cache.cursor.begin(self._slots, self._each(window.shape[1]))
            self._open = window.shape[1]
            logits.append(self._step(self._slots, window).clone())
        self.length += n
        return torch.cat(logits, dim=1)[:, -keep:]

    def _prefill(self, prompt: Tensor, attention_mask: Tensor | None, keep: int) -> Tensor:
        lengths = [prompt.shape[1]] * self.batch
        if attention_mask is not None:
            mask = attention_mask[:, : prompt.shape[1]].bool()
            lengths = mask.sum(1).tolist()
            left_padded = all(bool(row[-count:].all()) for row, count in zip(mask, lengths, strict=True) if count)
            if not left_padded or min(lengths) < 1:
                raise ValueError(
                    "forward: attention_mask must be 0 on left padding and 1 on at least one token after it"
                )
            if keep > 1 and min(lengths) < prompt.shape[1]:
                raise ValueError(f"forward: logits_to_keep must be 1 for sequences with padding; got {keep}")
        rows = zip(self._slots.tolist(), prompt, lengths, strict=True)
        return torch.stack([self._cache.prefill(self.model, slot, row[-count:]) for slot, row, count in rows])

    def _each(self, value: int) -> Tensor:
        return torch.full((self.batch,), value, dtype=torch.int32)

    def _commit(self, accepted: int) -> None:
        if self._open:
            self._cache.cursor.commit(self._slots, self._each(accepted))
            self._open = 0

    def _build(self, nslots: int, max_tokens: int, max_window: int, max_rollback: int) -> None:
        config = self.model.config
        self._nslots = nslots
        self._session = Session(max_window, fold_every_for(config), max_rollback, config.mamba_d_conv)
        self._cache = DecodeCache(config, max_tokens, self._session, nslots, self.model.dtype)
        self._step = StepModel(self.model, self._cache)

    def _rebuild(self, nslots: int, max_tokens: int, max_window: int, max_rollback: int) -> None:
        """Other buffers for the same sequences; nothing before this point can be rolled back any more."""
        self._commit(self._open)
        saved = [self._step.materialize(slot) for slot in self._slots.tolist()] if self.length else []
        self._build(nslots, max_tokens, max_window, max_rollback)
        self._slots = torch.arange(self.batch, dtype=torch.int32)
        for slot, sequence in enumerate(saved):
            self._cache.state_import(slot, sequence)
