"""The cache behind `model.generate`: transformers' own greedy search, sampling, beams and assisted decoding.

transformers rolls a cache back by cropping it, which no recurrent state can; a cursor can. So prompt lookup
(`prompt_lookup_num_tokens=`) and assistants (`assistant_model=`) work here as they do for a Transformer.
"""

import copy

import torch
from torch import Tensor

from ..cache import DTYPES, DecodeCache, Session, fold_every_for
from .step import StepModel, altered_module

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
        self._failed = False  # in the middle of a step or of new buffers: what the sequences are is lost
        self._open = 0  # tokens of the step that is not committed yet
        self._slots = torch.arange(batch, dtype=torch.int32)
        self._build(batch, max_tokens, FIRST_WINDOW, 0)

    @staticmethod
    def supports(model) -> bool:
        return model.device.type == "cpu" and model.dtype in DTYPES and altered_module(model) is None

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self._cache.max_tokens

    def activate_past_recording(self) -> None:
        """From now on the tokens whose logits a forward keeps, however many, are one step, and can be cropped."""
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
        from_step = min(n, self._open)
        self._commit(self._open - from_step)
        if n > from_step:
            self._cache.cursor.rollback(self._slots, self._each(n - from_step))
        self.length -= n

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence i becomes what sequence beam_idx[i] was. Beams take turns in two banks of slots."""
        self._commit(self._open)
        if self._nslots < 2 * self.batch:
            self._rebuild(2 * self.batch, self._cache.max_tokens, self._session.max_window, self._session.max_rollback)
        source = self._slots[beam_idx.long()]
        self._slots = (self._slots + self.batch) % (2 * self.batch)
        self._cache.slot_copy(source, self._slots)

    def __deepcopy__(self, memo) -> "GenerationCache":
        """The same sequences in other buffers, to go on twice from one prefix; the model is shared."""
        twin = copy.copy(self)
        twin._slots = self._slots.clone()
        twin._build(self._nslots, self._cache.max_tokens, self._session.max_window, self._session.max_rollback)
        with torch.inference_mode():
            twin._cache.cursor.table.copy_(self._cache.cursor.table)
            for theirs, ours in zip(twin._cache.layers, self._cache.layers, strict=True):
                for name, buffer in vars(ours).items():
                    getattr(theirs, name).copy_(buffer)
        return twin

    # What the model's forward asks of it.

    def reserve(self, max_tokens: int, max_rollback: int) -> None:
        """Make room for longer sequences and for crops over several forwards."""
        if max_tokens > self._cache.max_tokens or max_rollback > self._session.max_rollback:
            if self.length and max_tokens > self._cache.max_tokens:
                max_tokens = max(max_tokens, 2 * self._cache.max_tokens)  # an assistant asks for a few more each time
            max_tokens = max(max_tokens, self._cache.max_tokens)
            max_rollback = max(max_rollback, self._session.max_rollback)
            self._rebuild(self._nslots, max_tokens, max(self._session.max_window, max_rollback), max_rollback)

    @torch.no_grad()  # not inference_mode: assisted decoding changes the logits in place
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, logits_to_keep: int) -> Tensor:
        """Append input_ids, (batch, n), to the sequences; logits (batch, logits_to_keep, vocab) of the last of them.

        attention_mask: (batch, at least n), 0 on left padding, which only the first forward may have. A forward that is
        refused changes nothing; after one that fails in a step the cache is refused.
        """
        batch, n = input_ids.shape
        keep = min(logits_to_keep or n, n)
        if batch != self.batch:
            raise ValueError(f"forward: input_ids must be of the cache's {self.batch} sequences; got {batch}")
        self._check_whole()
        self._check_ids(input_ids)
        padding = self._padding(attention_mask, n, keep)
        self.reserve(self.length + n, 0)  # drafts may reach beyond the longest output
        prefix = 0 if self.length else n - keep + 1  # whose last logits are the first that are kept
        left = n - prefix
        last = min(keep, left) if self._recording else 0
        if last > self._session.max_window:  # before the prefill: what it has filled would not be kept
            self._rebuild(self._nslots, self._cache.max_tokens, last, self._session.max_rollback)
        logits = [self._prefill(input_ids[:, :prefix], padding).unsqueeze(1)] if prefix else []
        input_ids = input_ids[:, prefix:]
        for part in input_ids.tensor_split((left - last,), dim=1):
            for window in part.split(self._session.max_window, dim=1) if part.shape[1] else ():
                self._commit(self._open)
                self._failed = True
                self._cache.cursor.begin(self._slots, self._each(window.shape[1]))
                step_logits = self._step(self._slots, window)
                self._open, self._failed = window.shape[1], False
                left -= window.shape[1]
                if left < keep:
                    logits.append(step_logits.clone())
        self.length += n
        return torch.cat(logits, dim=1)[:, -keep:]

    def _check_ids(self, input_ids: Tensor) -> None:
        last = self.model.config.vocab_size - 1
        if input_ids.shape[1] < 1 or input_ids.dtype != torch.int64:
            got = f"{tuple(input_ids.shape)} {str(input_ids.dtype).removeprefix('torch.')}"
            raise ValueError(f"forward: input_ids must be (batch, n) int64, n at least 1; got {got}")
        low, high = (int(id_) for id_ in input_ids.aminmax())
        if low < 0 or high > last:
            raise ValueError(f"forward: input_ids must be from 0 to vocab_size - 1 = {last}; got {low} to {high}")

    def _padding(self, attention_mask: Tensor | None, n: int, keep: int) -> list[int]:
        """How many of the next n columns are left padding, of each sequence."""
        mask = None if attention_mask is None else attention_mask[:, -n:].bool()
        if mask is None or bool(mask.all()):
            return [0] * self.batch
        drafts = self._session.max_rollback > 0
        if self.length and not drafts:
            raise ValueError("forward: attention_mask must be 1 on all tokens after the first forward's; got 0")
        padding = (n - mask.sum(1)).tolist()
        is_left = all(bool(row[count:].all()) for row, count in zip(mask, padding, strict=True))
        if drafts and (self.length or not is_left):
            return [0] * self.batch  # transformers takes any token of an assistant's that is the padding id for padding
        if max(padding) >= n or not is_left:
            raise ValueError("forward: attention_mask must be 0 on left padding and 1 on at least one token after it")
        if keep > 1:
            raise ValueError(f"forward: logits_to_keep must be 1 for sequences with padding; got {keep}")
        return padding

    def _prefill(self, prompt: Tensor, padding: list[int]) -> Tensor:
        """Logits after each prompt, (batch, vocab). Equal ones, such as those of beams, are computed once."""
        prompts = [tuple(row[count:].tolist()) for row, count in zip(prompt, padding, strict=True)]
        slots, logits, source, copy_of = self._slots.tolist(), {}, [], {}
        for slot, tokens in zip(slots, prompts, strict=True):
            if tokens not in logits:
                logits[tokens], copy_of[tokens] = self._cache.prefill(self.model, slot, torch.tensor(tokens)), slot
            source.append(copy_of[tokens])
        copied = [i for i, slot in enumerate(slots) if source[i] != slot]
        if copied:
            self._cache.slot_copy(torch.tensor(source, dtype=torch.int32)[copied], self._slots[copied])
        return torch.stack([logits[tokens] for tokens in prompts])

    def _each(self, value: int) -> Tensor:
        return torch.full((self.batch,), value, dtype=torch.int32)

    def _check_whole(self) -> None:
        if self._failed:
            raise ValueError(
                "forward: past_key_values must be a new cache after a forward that failed; got the old one"
            )

    def _commit(self, accepted: int) -> None:
        self._check_whole()
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
        self._failed = True
        self._build(nslots, max_tokens, max_window, max_rollback)
        self._slots = torch.arange(self.batch, dtype=torch.int32)
        for slot, sequence in enumerate(saved):
            self._cache.state_import(slot, sequence)
        self._failed = False
