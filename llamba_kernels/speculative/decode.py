"""Speculative decoding: draft, verify, accept, commit. A window of one token is plain decoding, by the same code."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..cache import DecodeCache, Session, check_int, fold_every_for
from ..models import LlambaForCausalLM
from ..models.step import StepModel
from ..ops import speculative_accept
from .drafts import Draft, NoDraft, PerSequence, PromptLookup, open_drafter
from .model_draft import ModelDraft
from .request import Request, check_drafts, check_prompt, stop_tokens
from .sampling import Sampling
from .stats import Generation, Stats

LARGEST_WINDOW = 64
LARGEST_BATCH = 1 << 16
LARGEST_SEED = 1 << 62


@dataclass
class _Sequence:
    """One sequence on its way."""

    prompt: list[int]
    generator: torch.Generator
    stats: Stats
    slot: int = -1
    tokens: list[int] = field(default_factory=list)  # emitted; the last is pending: not in the cache yet
    rows: list[Tensor] = field(default_factory=list)  # of logits, one tensor per step
    ended: str = ""
    shared: dict[str, float] = field(default_factory=dict)  # the decoder's seconds when it started


class SpeculativeDecoder:
    """Decodes with exactly the model's own output, one sequence or several at once.

    Greedy output is identical to plain greedy decoding, token for token; sampled output has the model's distribution
    after temperature, top-k and top-p. A sequence's tokens and logits do not depend on what is decoded beside it.

    Args:
        model: a LlambaForCausalLM in eval mode, fp32 or bf16, on the CPU.
        window: most tokens per verify step, the pending token included: window - 1 are drafted. 1 decodes plainly.
        draft: where drafts come from. A `Draft`; a function that makes one (needed when batch is above 1), such as the
            class PromptLookup; a `ModelDraft`. Default: prompt lookup.
        max_tokens: longest prompt + output; default the model's max_position_embeddings.
        fold_every: the session's W, see `Session`; None: chosen by `fold.choose_fold_every`.
        batch: sequences decoded at once, each in buffers of its own.
    """

    def __init__(
        self,
        model: LlambaForCausalLM,
        window: int = 4,
        draft: Draft | Callable[[], Draft] | ModelDraft | None = None,
        max_tokens: int | None = None,
        fold_every: int | None = None,
        batch: int = 1,
    ):
        check_int("SpeculativeDecoder: window", window, 1, LARGEST_WINDOW)
        check_int("SpeculativeDecoder: batch", batch, 1, LARGEST_BATCH)
        config = model.config
        if isinstance(draft, ModelDraft) and draft.model.config.vocab_size != config.vocab_size:
            raise ValueError(
                f"SpeculativeDecoder: draft must have the target's vocab_size {config.vocab_size}; "
                f"got {draft.model.config.vocab_size}"
            )
        self.window = window
        if fold_every is None:
            # as for one sequence: W decides bits, and a sequence's bits must not depend on the batch
            fold_every = fold_every_for(config, window, 1, torch.float32)
        session = Session(max_window=window, fold_every=fold_every, width=config.mamba_d_conv)
        max_tokens = config.max_position_embeddings if max_tokens is None else max_tokens
        self.cache = DecodeCache(config, max_tokens, session, nslots=batch, dtype=model.dtype)
        self.drafter = open_drafter(PromptLookup if draft is None else draft, batch, window, max_tokens)
        self.no_drafts = PerSequence([NoDraft()] * batch)
        self.model = model
        self.step = StepModel(model, self.cache)
        self._owner = None  # the call that owns slots, drafts and statistics
        self.stats = Stats()

    def generate(self, prompt: Iterable[int], max_new_tokens: int = 128, **options) -> Generation:
        """All tokens of `stream`, with the statistics."""
        return self.generate_batch([prompt], max_new_tokens, **options)[0]

    def generate_batch(
        self, prompts: Iterable[Iterable[int]], max_new_tokens: int = 128, **options
    ) -> list[Generation]:
        """What `generate` would give for each prompt; options as in `stream`, sequence i seeded by seed + i.

        Prompts may have any lengths and any number: when a sequence ends, the next takes its place. Equal prompts that
        start together are prefilled once. `self.stats` counts all sequences.
        """
        request = self._request(max_new_tokens, **options)
        sequences = self._sequences(prompts, request)
        for _ in self._decode(sequences, request):
            pass
        return [
            Generation(each.tokens, each.stats, torch.cat(each.rows) if request.return_logits else None, each.ended)
            for each in sequences
        ]

    def stream(self, prompt: Iterable[int], max_new_tokens: int = 128, **options) -> Iterator[list[int]]:
        """Yield the tokens of each step as they are decided; `self.stats` counts along. A new call ends an older one.

        Args:
            prompt: token ids, at least one.
            max_new_tokens: most tokens to emit; an end-of-sequence token ends earlier and is emitted.
            temperature, top_k, top_p: see `Sampling`; temperature 0, the default, is greedy.
            seed: int from 0 up, of the random numbers.
            eos_token_id: an id or several; default the model's; -1 for none (no token has that id).
            window: at most the decoder's, which is the default.
            return_logits: keep the logits that decided each token, for `generate` to return.
        Raises: ValueError, TypeError; before anything changes, unless it is a draft that proposes what it must not:
            then the sequence ends with the tokens it has.
        """
        request = self._request(max_new_tokens, **options)
        for bursts in self._decode(self._sequences([prompt], request), request):
            yield bursts[0]

    def _request(
        self,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        eos_token_id: int | Iterable[int] | None = None,
        window: int | None = None,
        return_logits: bool = False,
    ) -> Request:
        window = self.window if window is None else window
        check_int("generate: window", window, 1, self.window)
        check_int("generate: seed", seed, 0, LARGEST_SEED)
        sampling, eos = Sampling(temperature, top_k, top_p), stop_tokens(self.model, eos_token_id)
        return Request(max_new_tokens, sampling, seed, eos, window, return_logits)

    def _sequences(self, prompts: Iterable[Iterable[int]], request: Request) -> list[_Sequence]:
        vocab, longest = self.model.config.vocab_size, self.cache.max_tokens
        prompts = [check_prompt(prompt, vocab, longest, request.max_new_tokens) for prompt in prompts]
        return [
            _Sequence(prompt, torch.Generator().manual_seed(request.seed + i), Stats(prompt_tokens=len(prompt)))
            for i, prompt in enumerate(prompts)
        ]

    def _decode(self, sequences: list[_Sequence], request: Request) -> Iterator[list[list[int]]]:
        """Decode all; yields, round by round, the tokens that each sequence of the round has got."""
        owner = self._owner = object()
        self.stats = Stats(sequences=0)
        self.step.bind()
        waiting, running, free = deque(sequences), [], list(range(len(self.cache.cursor.table)))
        while waiting or running:
            if self._owner is not owner:
                raise ValueError(
                    "stream: decoder must decode one call at a time; got a newer call (use a decoder for each)"
                )
            if waiting and free:
                started = [waiting.popleft() for _ in range(min(len(waiting), len(free)))]
                bursts = self._start(started, free, request)
                running += started
            else:
                bursts = self._advance(running, request)
            for sequence in running:
                if sequence.ended:
                    free.append(sequence.slot)
            running = [sequence for sequence in running if not sequence.ended]
            yield bursts

    def _start(self, sequences: list[_Sequence], free: list[int], request: Request) -> list[list[int]]:
        """Prefill; the first token of each sequence."""
        groups: dict[tuple, list[_Sequence]] = {}
        for sequence in sequences:
            sequence.slot = free.pop(0)
            groups.setdefault(tuple(sequence.prompt), []).append(sequence)
        for group in groups.values():
            before = self.stats.seconds["prefill"]
            with self.stats.timed("prefill"):
                self._prefill(group, request)
            self.stats.sequences += len(group)
            self.stats.prompt_tokens += len(group[0].prompt) * len(group)
            self.stats.tokens += len(group)
            for sequence in group:
                sequence.stats.seconds["prefill"] = self.stats.seconds["prefill"] - before
        for sequence in sequences:
            sequence.shared = dict(self.stats.seconds)
            self._finish(sequence, request)
        return [sequence.tokens[:] for sequence in sequences]

    @torch.inference_mode()
    def _prefill(self, group: list[_Sequence], request: Request) -> None:
        """Sequences with the same prompt."""
        slots, prompt = [sequence.slot for sequence in group], group[0].prompt
        logits = self.cache.prefill(self.model, slots[0], torch.tensor(prompt)).unsqueeze(0)  # [1, vocab]
        if len(group) > 1:
            self.cache.slot_copy(_int32(slots[:1] * (len(slots) - 1)), _int32(slots[1:]))
        if request.return_logits:
            row = logits.clone()
            for sequence in group:
                sequence.rows.append(row)
        uniforms = None
        if not request.sampling.greedy:
            uniforms = [_uniforms(sequence, 1) for sequence in group]
        count = len(group)
        logits = request.sampling.mask_(logits).expand(count, 1, -1)
        _, first = self._accept(logits, torch.empty(count, 0, dtype=torch.int64), [1] * count, None, uniforms, request)
        drafter = self._drafter(request)
        drafter.reset(slots, prompt)
        for sequence, token in zip(group, first.tolist(), strict=True):
            sequence.tokens.append(token)
            sequence.stats.tokens = 1
            drafter.extend(sequence.slot, [token])

    def _drafter(self, request: Request):
        return self.drafter if request.window > 1 else self.no_drafts

    @torch.inference_mode()
    def _advance(self, running: list[_Sequence], request: Request) -> list[list[int]]:
        """One step of every running sequence: draft, verify, accept, commit."""
        sampling, drafter, vocab = request.sampling, self._drafter(request), self.model.config.vocab_size
        most = [min(request.window, request.max_new_tokens - len(each.tokens)) - 1 for each in running]
        with self.stats.timed("draft"):
            # per sequence: a number to draw each draft by, one to decide each, one for the token that follows
            u = None if sampling.greedy else [_uniforms(each, 2 * m + 1) for each, m in zip(running, most, strict=True)]
            draws = (
                None
                if u is None
                else _rows([each[:m] for each, m in zip(u, most, strict=True)], max(most), torch.float64)
            )
            drafts, draft_probs = drafter.propose([each.slot for each in running], most, sampling, draws)
        for proposed, m in zip(drafts, most, strict=True):
            check_drafts(proposed, m, vocab)

        counts = [1 + len(proposed) for proposed in drafts]
        window = max(counts)
        slots, ntokens = _int32([each.slot for each in running]), _int32(counts)
        tokens = _rows([[each.tokens[-1], *d] for each, d in zip(running, drafts, strict=True)], window)
        with self.stats.timed("verify"):
            self.cache.cursor.begin(slots, ntokens)
            logits = self.step(slots, tokens)  # [running, window, vocab]
        with self.stats.timed("accept"):
            rows = logits.clone() if request.return_logits else None  # the next step writes over logits
            if u is not None:
                logits = sampling.mask_(logits.flatten(0, 1)).unflatten(0, logits.shape[:2])
                if draft_probs is not None:
                    draft_probs = draft_probs[: len(running), : window - 1]
                u = [
                    each[m : m + len(d)] + [0.0] * (window - 1 - len(d)) + each[-1:]
                    for each, m, d in zip(u, most, drafts, strict=True)
                ]
            accepted, following = self._accept(logits, tokens[:, 1:], counts, draft_probs, u, request)
            self.cache.cursor.commit(slots, accepted)
            bursts = []
            for i, (stay, token) in enumerate(zip(accepted.tolist(), following.tolist(), strict=True)):
                emitted = _until(request.eos, [*drafts[i][: stay - 1], token])
                if rows is not None:
                    running[i].rows.append(rows[i, : len(emitted)])
                self._count(running[i], emitted, len(drafts[i]), stay - 1)
                bursts.append(emitted)
        with self.stats.timed("draft"):
            for sequence, emitted in zip(running, bursts, strict=True):
                drafter.extend(sequence.slot, emitted)
        for sequence in running:
            self._finish(sequence, request)
        return bursts

    @staticmethod
    def _accept(
        logits: Tensor,
        drafts: Tensor,
        counts: list[int],
        draft_probs: Tensor | None,
        uniforms: list[list[float]] | None,
        request: Request,
    ) -> tuple[Tensor, Tensor]:
        if uniforms is None:
            return speculative_accept(logits, drafts, _int32(counts))
        uniforms = torch.tensor(uniforms, dtype=torch.float64)
        return speculative_accept(logits, drafts, _int32(counts), draft_probs, uniforms, request.sampling.temperature)

    def _count(self, sequence: _Sequence, emitted: list[int], drafted: int, accepted: int) -> None:
        sequence.tokens += emitted
        for stats in (sequence.stats, self.stats):
            stats.steps += 1
            stats.tokens += len(emitted)
            stats.drafted += drafted
            stats.accepted_drafts += accepted

    def _finish(self, sequence: _Sequence, request: Request) -> None:
        """Note whether the sequence has ended, and what time it took."""
        if sequence.tokens[-1] in request.eos:
            sequence.ended = "eos"
        elif len(sequence.tokens) == request.max_new_tokens:
            sequence.ended = "length"
        else:
            return
        for part in ("draft", "verify", "accept"):
            sequence.stats.seconds[part] = self.stats.seconds[part] - sequence.shared[part]


def _uniforms(sequence: _Sequence, count: int) -> list[float]:
    return torch.rand(count, generator=sequence.generator, dtype=torch.float64).tolist()


def _until(stop: frozenset[int], tokens: list[int]) -> list[int]:
    """The tokens up to the first that ends the sequence, which is kept."""
    for i, token in enumerate(tokens):
        if token in stop:
            return tokens[: i + 1]
    return tokens


def _rows(rows: list[list], width: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor of rows padded with zeros."""
    filler = [0] * width
    return torch.tensor([row + filler[len(row) :] for row in rows], dtype=dtype)


def _int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
