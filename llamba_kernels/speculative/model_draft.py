"""A model as the draft: a small one, or the target's own first layers."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..cache import DecodeCache, Session, check_int, fold_every_for
from ..memory import check_slots
from ..models import LlambaForCausalLM
from ..models.step import StepModel
from ..ops import argmax
from .request import check_tokenizer
from .sampling import Sampling, draw
from .window import int32, padded


def first_layers(model: LlambaForCausalLM, count: int) -> LlambaForCausalLM:
    """The target's embedding, first `count` layers, final norm and head as a model: shared, not copied.

    Draft-and-verify with one's own layers: Zhang et al., arXiv 2309.08168. The layers were not trained to be read by
    the head, so how often such drafts are right is to be measured.
    """
    check_int("first_layers: count", count, 1, model.config.num_hidden_layers)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = count
    config.layers, config.mlp_layers = config.layers[:count], config.mlp_layers[:count]
    with torch.device("meta"):  # no memory: every parameter is replaced
        draft = LlambaForCausalLM(config)
    draft.model.embed_tokens = model.model.embed_tokens
    draft.model.layers = nn.ModuleList(model.model.layers[:count])
    draft.model.norm = model.model.norm
    draft.lm_head = model.lm_head
    return draft.train(model.training)


def first_difference(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> str | None:
    """The lowest id that the two give to different tokens, as a clause; None if there is none."""
    ours, theirs = ({i: token for token, i in each.get_vocab().items()} for each in (target, draft))
    for i in sorted(ours.keys() | theirs.keys()):
        if ours.get(i) != theirs.get(i):
            token, other = (repr(vocabulary[i]) if i in vocabulary else "none" for vocabulary in (ours, theirs))
            return f"id {i} is {other} instead of {token}"
    return None


class ModelDraft:
    """A LlambaForCausalLM with layers of any kinds that drafts.

    It drafts greedily for a greedy target, and otherwise draws from its own law, warped by the target's temperature,
    top-k and top-p. What the target rejects it takes back by its cursor: no state is copied.

    Args:
        model: in eval mode, fp32, bf16 or fp16, on the CPU, with the target's vocabulary.
        fold_every: of its session; None: `cache.fold_every_for`'s.
        tokenizer: the draft's; a decoder that has the target's compares the two.
    """

    def __init__(
        self,
        model: LlambaForCausalLM,
        fold_every: int | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ):
        if not isinstance(model, LlambaForCausalLM):
            raise TypeError(f"ModelDraft: model must be a LlambaForCausalLM; got {type(model).__name__}")
        check_tokenizer("ModelDraft", tokenizer)
        self.model = model
        self.fold_every = fold_every
        self.tokenizer = tokenizer

    def check_vocabulary(self, target: LlambaForCausalLM, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """An id must be the same token to both."""
        ours, theirs = self.model.config.vocab_size, target.config.vocab_size
        if ours != theirs:
            raise ValueError(f"SpeculativeDecoder: draft must have the target's vocab_size {theirs}; got {ours}")
        if tokenizer is None or self.tokenizer is None:
            return
        difference = first_difference(tokenizer, self.tokenizer)
        if difference is not None:
            raise ValueError(f"SpeculativeDecoder: draft must have the target's tokenizer; got one where {difference}")

    def open(self, batch: int, window: int, max_tokens: int) -> "ModelDrafter":
        """Its buffers for one decoder."""
        return ModelDrafter(self.model, self.fold_every, batch, window, max_tokens)


class ModelDrafter:
    """The Drafter of a model. Per slot it knows which committed tokens its cache lacks and which drafts it has beyond.

    A proposal takes back rejected drafts, feeds the committed tokens that are missing and then its own drafts but the
    last. Ordinarily one or two are missing: the token that followed the accepted drafts, and the last draft if it
    stayed, which was proposed, but never fed.
    """

    CATCH_UP = 2  # committed tokens fed at once

    def __init__(self, model: LlambaForCausalLM, fold_every: int | None, batch: int, window: int, max_tokens: int):
        if fold_every is None:
            fold_every = fold_every_for(model.config)
        session = Session(
            max_window=self.CATCH_UP,
            fold_every=fold_every,
            max_rollback=max(window - 2, 0),  # the last of window - 1 drafts is never fed
            width=model.config.mamba_d_conv,
        )
        self.model = model
        check_slots("ModelDraft", batch, model.config, max_tokens, session, model.dtype)
        self.cache = DecodeCache(model.config, max_tokens, session, nslots=batch, dtype=model.dtype)
        self.step = StepModel(model, self.cache)
        self.missing: list[list[int]] = [[] for _ in range(batch)]  # committed tokens that the cache lacks
        self.ahead: list[list[int]] = [[] for _ in range(batch)]  # drafts that it holds after the committed ones
        self.surplus = [0] * batch  # fed tokens that were not committed, to be taken back
        self.probabilities: Tensor | None = None  # [batch, window - 1, vocab] float32, once something is sampled
        self.most = window - 1

    def reset(self, slots: list[int], prompt: list[int]) -> None:
        self.step.bind()
        first, *others = slots
        self.cache.prefill(self.model, first, torch.tensor(prompt))
        if others:
            self.cache.slot_copy(int32([first] * len(others)), int32(others))
        for slot in slots:
            self.missing[slot], self.ahead[slot], self.surplus[slot] = [], [], 0

    def extend(self, slot: int, tokens: list[int]) -> None:
        ahead = self.ahead[slot]
        held = 0  # of these tokens the cache has already; the last is always fed, since the next draft follows from it
        while held < min(len(ahead), len(tokens) - 1) and ahead[held] == tokens[held]:
            held += 1
        self.surplus[slot] += len(ahead) - held
        self.ahead[slot] = []
        self.missing[slot] += tokens[held:]

    def propose(self, slots, most, sampling, uniforms):
        longest = max(most, default=0)
        if not sampling.greedy and self.probabilities is None:
            shape = len(self.missing), self.most, self.model.config.vocab_size
            self.probabilities = torch.empty(shape, dtype=torch.float32)
        self._take_back(slots)
        self._catch_up([slot for slot, count in zip(slots, most, strict=True) if count])
        drafts: list[list[int]] = [[] for _ in slots]
        for i in range(longest):
            rows = [j for j, count in enumerate(most) if count > i]
            fed = [drafts[j][-1:] if i else self.missing[slots[j]] for j in rows]
            logits = self._feed([slots[j] for j in rows], fed)
            tokens = self._choose(logits, rows, i, sampling, uniforms)
            for j, token in zip(rows, tokens.tolist(), strict=True):
                if i == 0:
                    self.missing[slots[j]] = []
                drafts[j].append(token)
        for slot, drafted in zip(slots, drafts, strict=True):
            self.ahead[slot] = drafted[:-1]
        return drafts, None if sampling.greedy else self.probabilities

    def _take_back(self, slots: list[int]) -> None:
        surplus = [self.surplus[slot] for slot in slots]
        if any(surplus):
            self.cache.cursor.rollback(int32(slots), int32(surplus))
            for slot in slots:
                self.surplus[slot] = 0

    def _catch_up(self, slots: list[int]) -> None:
        """Feed missing tokens until one step's are left: more are missing if the drafts verified were not all ours."""
        while behind := [slot for slot in slots if len(self.missing[slot]) > self.CATCH_UP]:
            self._feed(behind, [self.missing[slot][: self.CATCH_UP] for slot in behind])
            for slot in behind:
                del self.missing[slot][: self.CATCH_UP]

    @torch.inference_mode()
    def _feed(self, slots: list[int], tokens: list[list[int]]) -> Tensor:
        """(slots, vocab) logits after the last of each slot's one or two tokens."""
        counts = [len(each) for each in tokens]
        width = max(counts)
        slots, ntokens = int32(slots), int32(counts)
        self.cache.cursor.begin(slots, ntokens)
        logits = self.step(slots, padded(tokens, width))
        self.cache.cursor.commit(slots, ntokens)
        if width == 1:
            return logits[:, 0]
        return logits[torch.arange(len(counts)), ntokens.long() - 1]

    @torch.inference_mode()
    def _choose(self, logits: Tensor, rows: list[int], i: int, sampling: Sampling, uniforms: Tensor | None) -> Tensor:
        """Draft i of the sequences in `rows`, whose law becomes row i of their probabilities."""
        if sampling.greedy:
            return argmax(logits)
        law = sampling.probabilities(sampling.mask_(logits))
        self.probabilities[rows, i] = law
        return draw(law, uniforms[rows, i])
