"""Speculative decoding: draft, verify, accept, commit. A window of one token is plain decoding, by the same code."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from threading import RLock

import torch
from torch import Tensor

from ..cache import DecodeCache, Session, check_int, fold_every_for
from ..memory import check_slots
from ..models import LlambaForCausalLM
from ..models.step import StepModel
from ..ops import speculative_accept
from .drafts import Draft, Drafter, NoDraft, PerSequence, PromptLookup, open_drafter
from .model_draft import ModelDraft
from .request import Request, check_drafts, check_prompt, check_stop, check_tokenizer, stop_tokens
from .sampling import Sampling
from .stats import Generation, Stats
from .window import Running, Window, int32, padded

LARGEST_WINDOW = 64
LARGEST_BATCH = 1 << 16
LARGEST_SEED = 1 << 62


class SpeculativeDecoder:
    """Decodes with exactly the model's own output, one sequence or several at once.

    Greedy output is identical to plain greedy decoding, token for token; sampled output has the model's distribution
    after temperature, top-k and top-p. A sequence's tokens and logits do not depend on what is decoded beside it.

    Args:
        model: a LlambaForCausalLM in eval mode, fp32, bf16 or fp16, on the CPU.
        window: most tokens per verify step, the pending token included: window - 1 are drafted. 1 decodes plainly.
        draft: where drafts come from. A `Draft`; a function that makes one (needed when batch is above 1), such as the
            class PromptLookup; a `ModelDraft`. Default: prompt lookup.
        max_tokens: longest prompt + output; default the model's max_position_embeddings.
        fold_every: the session's W, see `Session`; None: `cache.fold_every_for`'s, the same for any window and batch.
        batch: sequences decoded at once, each in buffers of its own.
        tokenizer: the model's, for stop strings and to compare it with a draft's.
    """

    def __init__(
        self,
        model: LlambaForCausalLM,
        window: int = 4,
        draft: Draft | Callable[[], Draft] | ModelDraft | None = None,
        max_tokens: int | None = None,
        fold_every: int | None = None,
        batch: int = 1,
        tokenizer=None,
    ):
        check_int("SpeculativeDecoder: window", window, 1, LARGEST_WINDOW)
        check_int("SpeculativeDecoder: batch", batch, 1, LARGEST_BATCH)
        if not isinstance(model, LlambaForCausalLM):
            raise TypeError(
                "SpeculativeDecoder: model must be a LlambaForCausalLM, as load_model gives it; "
                f"got {type(model).__name__}"
            )
        check_tokenizer("SpeculativeDecoder", tokenizer)
        config = model.config
        if isinstance(draft, ModelDraft):
            draft.check_vocabulary(model, tokenizer)
        self.window = window
        fold_every = fold_every_for(config) if fold_every is None else fold_every
        session = Session(max_window=window, fold_every=fold_every, width=config.mamba_d_conv)
        max_tokens = config.max_position_embeddings if max_tokens is None else max_tokens
        check_slots("SpeculativeDecoder", batch, config, max_tokens, session, model.dtype)
        self.cache = DecodeCache(config, max_tokens, session, nslots=batch, dtype=model.dtype)
        self.drafter = open_drafter(PromptLookup if draft is None else draft, batch, window, max_tokens)
        self.no_drafts = PerSequence([NoDraft()] * batch)
        self.model, self.tokenizer = model, tokenizer
        self.step = StepModel(model, self.cache)
        self._owner = None  # the call that owns slots, drafts and statistics
        self._lock = RLock()  # of a round: another thread's call takes over between two
        self.stats = Stats()

    def generate(self, prompt: Iterable[int], max_new_tokens: int = 128, **options) -> Generation:
        """All tokens of `stream`, with the statistics."""
        return self.generate_batch([prompt], max_new_tokens, **options)[0]

    def generate_batch(
        self, prompts: Iterable[Iterable[int]], max_new_tokens: int = 128, **options
    ) -> list[Generation]:
        """What `generate` would give for each prompt; options as in `stream`, but prompt i draws with seed + i.

        So the seeds of two calls should lie further apart than a call has prompts, or most draws are the same in both.
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
            stop: a string or several; the sequence ends with the token that makes its text contain one.
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
        stop: str | Iterable[str] = (),
        window: int | None = None,
        return_logits: bool = False,
        **unknown,
    ) -> Request:
        if unknown:
            raise TypeError(f"generate: options must be those that `stream` describes; got {', '.join(unknown)}")
        window = self.window if window is None else window
        check_int("generate: window", window, 1, self.window)
        check_int("generate: seed", seed, 0, LARGEST_SEED)
        sampling, eos = Sampling(temperature, top_k, top_p), stop_tokens(self.model, eos_token_id)
        stop = check_stop(stop, self.tokenizer)
        return Request(max_new_tokens, sampling, seed, eos, stop, self.tokenizer, window, return_logits)

    def _sequences(self, prompts: Iterable[Iterable[int]], request: Request) -> list[Running]:
        vocab, longest = self.model.config.vocab_size, self.cache.max_tokens
        if not isinstance(prompts, Iterable):
            raise TypeError(f"generate_batch: prompts must be sequences of ids; got {type(prompts).__name__}")
        prompts = [check_prompt(prompt, vocab, longest, request.max_new_tokens) for prompt in prompts]
        return [
            Running(prompt, torch.Generator().manual_seed(request.seed + i), Stats(prompt_tokens=len(prompt)))
            for i, prompt in enumerate(prompts)
        ]

    def _decode(self, sequences: list[Running], request: Request) -> Iterator[list[list[int]]]:
        """Decode all; yields, round by round, the tokens that each sequence of the round has got."""
        with self._lock:
            self.step.bind()
            owner = self._owner = object()
            self.stats = Stats(sequences=0)
        waiting, running, free = deque(sequences), [], list(range(len(self.cache.cursor.table)))
        while waiting or running:
            with self._lock:
                self._check_owner(owner)
                if waiting and free:
                    started = [waiting.popleft() for _ in range(min(len(waiting), len(free)))]
                    for sequence in started:
                        sequence.slot = free.pop()
                    bursts = self._start(started, request)
                    running += started
                else:
                    bursts = self._advance(running, request)
                self._check_owner(owner)  # a draft may have called its decoder
            free += [sequence.slot for sequence in running if sequence.ended]
            running = [sequence for sequence in running if not sequence.ended]
            yield bursts

    def _check_owner(self, owner: object) -> None:
        if self._owner is not owner:
            raise ValueError(
                "stream: decoder must decode one call at a time; got a newer call (use a decoder for each)"
            )

    def _start(self, sequences: list[Running], request: Request) -> list[list[int]]:
        """The first token of each sequence; those with the same prompt share its prefill."""
        groups: dict[tuple, list[Running]] = {}
        for sequence in sequences:
            groups.setdefault(tuple(sequence.prompt), []).append(sequence)
        for group in groups.values():
            before = self.stats.seconds["prefill"]
            with self.stats.timed("prefill"):
                self._prefill(group, request)
            for sequence in group:
                sequence.stats.seconds["prefill"] = self.stats.seconds["prefill"] - before
        for sequence in sequences:
            self.stats.sequences += 1
            self.stats.prompt_tokens += len(sequence.prompt)
            self.stats.tokens += 1
            sequence.shared = dict(self.stats.seconds)
        return [sequence.tokens[:] for sequence in sequences]

    @torch.inference_mode()
    def _prefill(self, group: list[Running], request: Request) -> None:
        count, slots, prompt = len(group), [sequence.slot for sequence in group], group[0].prompt
        logits = self.cache.prefill(self.model, slots[0], torch.tensor(prompt)).unsqueeze(0)  # [1, vocab]
        if count > 1:
            self.cache.slot_copy(int32(slots[:1] * (count - 1)), int32(slots[1:]))
        drafter = self._drafter(request)
        drafter.reset(slots, prompt)
        row = logits.clone() if request.return_logits else None
        logits = request.sampling.mask_(logits).expand(count, 1, -1)
        uniforms = None
        if not request.sampling.greedy:
            uniforms = padded([each.uniforms(1) for each in group], 1, torch.float64)
        first = Window(
            drafts=[[]] * count,
            slots=int32(slots),
            ntokens=int32([1] * count),
            tokens=torch.tensor([prompt[-1:]] * count),
            draft_probs=None,
            uniforms=uniforms,
        )
        _, tokens = self._accept(logits, first, request)
        for sequence, token in zip(group, tokens.tolist(), strict=True):
            sequence.stats.tokens = len(sequence.append([token], request))
            drafter.extend(sequence.slot, [token])
            if row is not None:
                sequence.rows.append(row)

    @torch.inference_mode()
    def _advance(self, running: list[Running], request: Request) -> list[list[int]]:
        """One step of every running sequence."""
        with self.stats.timed("draft"):
            window = self._draft(running, request)
        with self.stats.timed("verify"):
            logits = self._verify(window)
        with self.stats.timed("accept"):
            rows = logits.clone() if request.return_logits else None  # the next step writes over logits
            accepted, following = self._accept(self._mask(logits, request), window, request)
            bursts = self._commit(running, window, accepted, following, request)
        with self.stats.timed("draft"):
            drafter = self._drafter(request)
            for sequence, burst in zip(running, bursts, strict=True):
                drafter.extend(sequence.slot, burst)
        for i, sequence in enumerate(running):
            if rows is not None:
                sequence.rows.append(rows[i, : len(bursts[i])])
            if sequence.ended:
                for part in ("draft", "verify", "accept"):
                    sequence.stats.seconds[part] = self.stats.seconds[part] - sequence.shared[part]
        return bursts

    def _draft(self, running: list[Running], request: Request) -> Window:
        """Ask for as many drafts as a window, and what is still to be emitted, have room for."""
        most = [min(request.window, request.max_new_tokens - len(each.tokens)) - 1 for each in running]
        draws = uniforms = None
        if not request.sampling.greedy:
            # One to draw each draft by, one to decide it, one for the token that follows.
            numbers = [each.uniforms(2 * count + 1) for each, count in zip(running, most, strict=True)]
            uniforms = [each[count:] for each, count in zip(numbers, most, strict=True)]
            draws = padded([each[:count] for each, count in zip(numbers, most, strict=True)], max(most), torch.float64)
        drafts, draft_probs = self._drafter(request).propose(
            [each.slot for each in running], most, request.sampling, draws
        )
        for proposed, count in zip(drafts, most, strict=True):
            check_drafts(proposed, count, self.model.config.vocab_size)
        return Window.of(running, drafts, draft_probs, uniforms)

    def _verify(self, window: Window) -> Tensor:
        """(batch, window, vocab) logits of every token; opens the step."""
        self.cache.cursor.begin(window.slots, window.ntokens)
        return self.step(window.slots, window.tokens)

    @staticmethod
    def _mask(logits: Tensor, request: Request) -> Tensor:
        """Top-k and top-p, in place."""
        if request.sampling.greedy:
            return logits
        return request.sampling.mask_(logits.flatten(0, 1)).unflatten(0, logits.shape[:2])

    @staticmethod
    def _accept(logits: Tensor, window: Window, request: Request) -> tuple[Tensor, Tensor]:
        """How many tokens of each window stay, and the token that follows them."""
        drafts = window.tokens[:, 1:]
        if request.sampling.greedy:
            return speculative_accept(logits, drafts, window.ntokens)
        temperature = request.sampling.temperature
        return speculative_accept(logits, drafts, window.ntokens, window.draft_probs, window.uniforms, temperature)

    def _commit(
        self, running: list[Running], window: Window, accepted: Tensor, following: Tensor, request: Request
    ) -> list[list[int]]:
        """Close the step; the tokens that each sequence has got."""
        self.cache.cursor.commit(window.slots, accepted)
        bursts = []
        for sequence, drafts, stay, token in zip(
            running, window.drafts, accepted.tolist(), following.tolist(), strict=True
        ):
            burst = sequence.append([*drafts[: stay - 1], token], request)
            for stats in (sequence.stats, self.stats):
                stats.steps += 1
                stats.tokens += len(burst)
                stats.drafted += len(drafts)
                stats.accepted_drafts += stay - 1
            bursts.append(burst)
        return bursts

    def _drafter(self, request: Request) -> Drafter:
        return self.drafter if request.window > 1 else self.no_drafts
