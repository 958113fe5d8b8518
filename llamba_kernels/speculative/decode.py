"""Speculative decoding: draft, verify, accept, commit. A window of one token is plain decoding, by the same code."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..cache import DecodeCache, Session, check_int, fold_every_for
from ..models import LlambaForCausalLM
from ..models.step import StepModel
from ..ops import speculative_accept
from .drafts import Draft, PromptLookup


@dataclass
class Stats:
    """What one generation did; times in seconds."""

    prompt_tokens: int = 0
    tokens: int = 0  # emitted
    steps: int = 0  # verify calls
    drafted: int = 0
    accepted_drafts: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("prefill", "draft", "verify", "accept"), 0.0)
    )

    @property
    def decode_seconds(self) -> float:
        return sum(self.seconds.values()) - self.seconds["prefill"]

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed; the prompt and the token that its prefill yields are left out."""
        return (self.tokens - 1) / self.decode_seconds if self.tokens > 1 else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens emitted per verify step, 1 to window."""
        return (self.tokens - 1) / self.steps if self.steps else 0.0


@dataclass
class Generation:
    tokens: list[int]
    stats: Stats


class SpeculativeDecoder:
    """Decodes one sequence at a time with exactly the model's own output.

    Greedy output is identical to plain greedy decoding, token for token; sampled output has the model's distribution.

    Args:
        model: a LlambaForCausalLM in eval mode, fp32 or bf16, on the CPU.
        window: tokens per verify step, the pending token included: window - 1 are drafted. 1 decodes plainly.
        draft: proposes tokens; default PromptLookup().
        max_tokens: longest prompt + output; default the model's max_position_embeddings.
        fold_every: the session's W, see `Session`; None: chosen by `fold.choose_fold_every`.
    """

    def __init__(
        self,
        model: LlambaForCausalLM,
        window: int = 4,
        draft: Draft | None = None,
        max_tokens: int | None = None,
        fold_every: int | None = None,
    ):
        check_int("SpeculativeDecoder: window", window, 1, 64)
        self.window = window
        self.draft = PromptLookup() if draft is None else draft
        if fold_every is None:
            fold_every = fold_every_for(model.config, window, 1, torch.float32)
        session = Session(max_window=window, fold_every=fold_every, width=model.config.mamba_d_conv)
        max_tokens = model.config.max_position_embeddings if max_tokens is None else max_tokens
        self.cache = DecodeCache(model.config, max_tokens, session, dtype=model.dtype)
        self.model = model
        self.step = StepModel(model, self.cache)
        self.slots = torch.zeros(1, dtype=torch.int32)
        self._stream = None  # the one that owns the slot, the draft and the statistics
        self.stats = Stats()

    def generate(self, prompt: Iterable[int], max_new_tokens: int = 128, **options) -> Generation:
        """All tokens of `stream`, with the statistics."""
        tokens = [token for burst in self.stream(prompt, max_new_tokens, **options) for token in burst]
        return Generation(tokens, self.stats)

    def stream(
        self,
        prompt: Iterable[int],
        max_new_tokens: int = 128,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        eos_token_id: int | Iterable[int] | None = None,
    ) -> Iterator[list[int]]:
        """Yield the tokens of each step as they are decided; `self.stats` counts along. A new stream ends an older one.

        Args:
            prompt: token ids, at least one.
            max_new_tokens: most tokens to emit; an end-of-sequence token ends earlier and is emitted.
            temperature: 0 is greedy; otherwise sampling from softmax(logits / temperature), seeded by `seed`.
            eos_token_id: default the model's; -1 for none (no token has that id).
        """
        if isinstance(prompt, str):
            raise TypeError("generate: prompt must be token ids, such as tokenizer(text)['input_ids']; got a str")
        prompt = torch.as_tensor(prompt if isinstance(prompt, Tensor) else list(prompt), dtype=torch.int64)
        if prompt.dim() != 1:
            raise ValueError(f"generate: prompt must be one sequence of ids, (n,); got shape {tuple(prompt.shape)}")
        self._check(prompt, max_new_tokens, temperature)
        stop = self._stop_tokens(eos_token_id)
        generator = torch.Generator().manual_seed(seed)
        stats = self.stats = Stats(prompt_tokens=len(prompt))
        stream = self._stream = object()
        self.step.bind()

        with _timed(stats, "prefill"):
            logits = self.cache.prefill(self.model, 0, prompt)
        with _timed(stats, "accept"):
            no_drafts = torch.empty(1, 0, dtype=torch.int64)
            _, first = self._accept(logits.view(1, 1, -1), no_drafts, 1, temperature, generator)
        emitted = [int(first)]
        stats.seconds["prefill"] += stats.seconds["accept"]
        stats.seconds["accept"] = 0.0
        self.draft.reset([*prompt.tolist(), *emitted])

        while True:
            stats.tokens += len(emitted)
            yield emitted
            remaining = max_new_tokens - stats.tokens
            if emitted[-1] in stop or remaining == 0:
                return
            if self._stream is not stream:
                raise ValueError(
                    "stream: decoder must decode one sequence at a time; got a newer stream (use a decoder for each)"
                )
            pending = emitted[-1]
            with _timed(stats, "draft"):
                most = min(self.window, remaining) - 1
                drafts = self.draft.propose(most)
            self._check_drafts(drafts, most)
            accepted, token = self._verify([pending, *drafts], temperature, generator)
            emitted = [*drafts[: accepted - 1], token]
            for i, candidate in enumerate(emitted):
                if candidate in stop:
                    emitted = emitted[: i + 1]
                    break
            stats.drafted += len(drafts)
            stats.accepted_drafts += accepted - 1
            with _timed(stats, "draft"):
                self.draft.extend(emitted)

    def _verify(self, window: list[int], temperature: float, generator: torch.Generator) -> tuple[int, int]:
        """One step over the pending token and its drafts; returns how many of them stay and the token that follows."""
        stats, cursor, ntokens = self.stats, self.cache.cursor, len(window)
        tokens = torch.tensor([window], dtype=torch.int64)
        with _timed(stats, "verify"):
            cursor.begin(self.slots, torch.tensor([ntokens], dtype=torch.int32))
            logits = self.step(self.slots, tokens)
        with _timed(stats, "accept"):
            accepted, token = self._accept(logits, tokens[:, 1:], ntokens, temperature, generator)
            cursor.commit(self.slots, accepted)
        stats.steps += 1
        return int(accepted), int(token)

    @staticmethod
    def _accept(logits: Tensor, drafts: Tensor, ntokens: int, temperature: float, generator: torch.Generator):
        count = torch.tensor([ntokens], dtype=torch.int32)
        if temperature == 0.0:
            return speculative_accept(logits, drafts, count)
        uniforms = torch.rand(1, ntokens, generator=generator, dtype=torch.float64)
        return speculative_accept(logits, drafts, count, None, uniforms, temperature)

    def _stop_tokens(self, eos_token_id) -> set[int]:
        if eos_token_id is None:
            eos_token_id = self.model.generation_config.eos_token_id
            eos_token_id = self.model.config.eos_token_id if eos_token_id is None else eos_token_id
        if eos_token_id is None:
            return set()
        return {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)

    def _check(self, prompt: Tensor, max_new_tokens: int, temperature: float) -> None:
        if len(prompt) < 1:
            raise ValueError("generate: prompt must have at least one token; got none")
        vocab = self.model.config.vocab_size
        if int(prompt.min()) < 0 or int(prompt.max()) >= vocab:
            wrong = int(prompt.min()) if int(prompt.min()) < 0 else int(prompt.max())
            raise ValueError(f"generate: prompt must hold ids from 0 to vocab_size - 1 = {vocab - 1}; got {wrong}")
        check_int("generate: max_new_tokens", max_new_tokens, 1, self.cache.max_tokens)
        if len(prompt) + max_new_tokens > self.cache.max_tokens:
            raise ValueError(
                f"generate: prompt + max_new_tokens must be at most max_tokens = {self.cache.max_tokens}; "
                f"got {len(prompt)} + {max_new_tokens}"
            )
        if not 0.0 <= temperature < float("inf"):
            raise ValueError(f"generate: temperature must be 0 (greedy) or positive; got {temperature}")

    def _check_drafts(self, drafts: list[int], most: int) -> None:
        """A draft source is anybody's code: refused before the step opens, so that the slot stays usable."""
        vocab = self.model.config.vocab_size
        rule = f"generate: drafts must be a list of at most {most} ints from 0 to vocab_size - 1 = {vocab - 1}"
        if not isinstance(drafts, list):
            raise TypeError(f"{rule}; got {type(drafts).__name__}")
        if len(drafts) > most:
            raise ValueError(f"{rule}; got {len(drafts)}")
        for token in drafts:
            if type(token) is not int:
                raise TypeError(f"{rule}; got one of {type(token).__name__}")
            if not 0 <= token < vocab:
                raise ValueError(f"{rule}; got {token} among them")


class _timed:
    """Adds the time of a with-block to one of the statistics' parts."""

    def __init__(self, stats: Stats, part: str):
        self.stats, self.part = stats, part

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *_):
        self.stats.seconds[self.part] += time.perf_counter() - self.start
