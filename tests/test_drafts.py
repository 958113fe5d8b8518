"""Drafts: whatever proposes tokens, greedy output and its logits keep their bits; a model's drafts are its own."""

import pytest
import torch
from helpers import assert_bitwise, assert_refused
from speculation import LAYERS, PROMPT, VOCAB, tiny_model

from llamba_kernels.cache import DecodeCache, Session
from llamba_kernels.models.step import StepModel
from llamba_kernels.speculative import ModelDraft, NoDraft, PromptLookup, SpeculativeDecoder, first_layers
from llamba_kernels.speculative.sampling import Sampling, draw
from llamba_kernels.testing import ForcedDraft

TOKENS = 40
STACKS = {"attention": ["attention"] * 3, "hybrid": list(LAYERS), "mamba2": ["mamba2"] * 3}
SMALL = {"attention": ["attention"], "hybrid": ["mamba2", "attention"], "mamba2": ["mamba2"]}
FORCED = {
    "reject all": ForcedDraft.REJECT_ALL,
    "accept all": ForcedDraft.ACCEPT_ALL,
    "stretches": [0] * 5 + [ForcedDraft.ACCEPT_ALL] * 4 + [1, 0, 2, 0, 3, 1],
}


class Overruled:
    """A ModelDraft whose proposals are replaced by others', after it has put its own into its cache."""

    def __init__(self, model, other):
        self.model, self.other = model, other

    def open(self, batch, window, max_tokens):
        self.drafter = ModelDraft(self.model).open(batch, window, max_tokens)
        return self

    def reset(self, slots, prompt):
        self.drafter.reset(slots, prompt)
        self.other.reset(prompt)

    def extend(self, slot, tokens):
        self.drafter.extend(slot, tokens)
        self.other.extend(tokens)

    def propose(self, slots, most, sampling, uniforms):
        self.drafter.propose(slots, most, sampling, uniforms)
        return [self.other.propose(most[0])], None


def every_draft(model, output, dtype):
    """Each kind of draft, by name; drafts of random models are right about as often as a guess."""
    sequences = [[*PROMPT, *output]]
    drafts = {"lookup": PromptLookup(), "none": NoDraft(), "first layer": ModelDraft(first_layers(model, 1))}
    drafts["itself"] = ModelDraft(model)
    for name, layers in SMALL.items():
        drafts[f"small {name}"] = ModelDraft(tiny_model(layers, dtype, seed=5))
    for name, right in FORCED.items():
        drafts[name] = ForcedDraft(sequences, right, VOCAB)
        drafts[f"itself, overruled: {name}"] = Overruled(model, ForcedDraft(sequences, right, VOCAB))
    return drafts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stack", STACKS)
def test_greedy_output_has_plain_decodings_bits(stack, dtype):
    """Tokens and logits, every draft and several windows."""
    model = tiny_model(STACKS[stack], dtype)
    plain = SpeculativeDecoder(model, window=1, fold_every=2).generate(PROMPT, TOKENS, return_logits=True)
    assert plain.logits.dtype == dtype and len(set(plain.tokens)) > 5
    for name, draft in every_draft(model, plain.tokens, dtype).items():
        for window in (2, 3, 6):
            decoder = SpeculativeDecoder(model, window=window, draft=draft, fold_every=2)
            result = decoder.generate(PROMPT, TOKENS, return_logits=True)
            assert result.tokens == plain.tokens, (name, window)
            assert_bitwise(result.logits, plain.logits)
            check_acceptance(name, result.stats, window)


def check_acceptance(name, stats, window):
    """A draft that is the target is always right, one that is forced as forced: else its cache has gone wrong."""
    if name.endswith("reject all") or name == "none":
        assert stats.accepted_drafts == 0 and stats.steps == TOKENS - 1
    if name.endswith("accept all") or name == "itself":
        assert stats.accepted_drafts == stats.drafted and stats.steps == -(-(TOKENS - 1) // window)
    assert stats.accepted_drafts == stats.tokens - 1 - stats.steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stack", SMALL)
def test_a_models_drafts_depend_on_the_committed_tokens_alone(stack, dtype):
    """After any acceptances its probabilities have the bits of a model that has seen the committed tokens only."""
    model, window, sampling = tiny_model(SMALL[stack], dtype, seed=5), 5, Sampling(0.9, 20, 0.9)
    drafter = ModelDraft(model, fold_every=2).open(2, window, 256)
    generator = torch.Generator().manual_seed(1)
    sequences = [PROMPT + [3], PROMPT[:4] + [9]]
    for slot, sequence in enumerate(sequences):
        drafter.reset([slot], sequence[:-1])
        drafter.extend(slot, sequence[-1:])
    for turn in range(12):
        uniforms = torch.rand(2, window - 1, generator=generator, dtype=torch.float64)
        most = [[4, 4], [4, 2], [1, 3]][turn % 3]
        drafts, probabilities = drafter.propose([0, 1], most, sampling, uniforms)
        assert [len(each) for each in drafts] == most
        for slot, sequence in enumerate(sequences):
            prompt = [len(PROMPT), 4][slot]
            expected = laws_without_rollback(model, sequence, prompt, drafts[slot], window, sampling)
            assert_bitwise(probabilities[slot, : most[slot]], expected)
            assert draw(expected, uniforms[slot, : most[slot]]).tolist() == drafts[slot]
            stay = [0, most[slot], most[slot] // 2, most[slot] - 1][(turn + slot) % 4]
            committed = [*drafts[slot][:stay], (turn * 7 + slot) % VOCAB]
            drafter.extend(slot, committed)
            sequence += committed


@torch.inference_mode()
def laws_without_rollback(model, sequence, prompt, drafts, window, sampling):
    """The law of each draft, from a fresh cache that is fed one token at a time and never takes one back."""
    session = Session(max_window=1, fold_every=2, max_rollback=window - 2)
    step = StepModel(model, DecodeCache(model.config, 256, session, dtype=model.dtype))
    step.cache.prefill(model, 0, torch.tensor(sequence[:prompt]))
    slots, one, laws = torch.zeros(1, dtype=torch.int32), torch.ones(1, dtype=torch.int32), []
    for token in (*sequence[prompt:], *drafts[:-1]):
        step.cache.cursor.begin(slots, one)
        laws.append(sampling.probabilities(sampling.mask_(step(slots, torch.tensor([[token]]))[0].clone())))
        step.cache.cursor.commit(slots, one)
    return torch.cat(laws[-len(drafts) :])


def test_first_layers_shares_every_parameter():
    model = tiny_model()
    draft = first_layers(model, 3)
    theirs = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in theirs and not parameter.is_meta for parameter in draft.parameters())
    assert draft.config.layers == list(LAYERS[:3]) and model.config.layers == list(LAYERS) and not draft.training
    ids = torch.tensor([PROMPT])
    hidden = model.model(ids, output_hidden_states=True).hidden_states[3]
    with torch.inference_mode():
        assert torch.equal(draft(ids).logits, model.lm_head(model.model.norm(hidden)))
        assert torch.equal(first_layers(model, 4)(ids).logits, model(ids).logits)
    assert_refused(ValueError, "first_layers: count must be 1 to 4; got 5", first_layers, model, 5)


def test_a_changed_draft_model_is_seen_by_the_next_generation():
    """It becomes the target, and is always right. bf16: there a step has its own copy of D, in fp32."""
    model, draft = tiny_model(dtype=torch.bfloat16), tiny_model(dtype=torch.bfloat16)
    parameters = [layer.mamba.D for layer in draft.model.layers if layer.is_mamba]
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(-32.0)
    decoder = SpeculativeDecoder(model, window=4, draft=ModelDraft(draft))
    assert decoder.generate(PROMPT, 21).stats.acceptance_length < 3
    with torch.no_grad():
        for parameter in parameters:
            parameter.div_(-32.0)
    assert decoder.generate(PROMPT, 21).stats.acceptance_length == 4


def test_prompt_lookup_copies_what_followed_the_longest_match():
    draft = PromptLookup(max_ngram=3)
    draft.reset([1, 2, 3, 4, 9, 2, 3, 7, 1, 2, 3])
    assert draft.propose(2) == [4, 9]  # "1 2 3" matched, although "2 3" occurs later
    assert draft.propose(0) == []
    draft.extend([8])
    assert draft.propose(3) == []  # 8 has no earlier occurrence
    draft.extend([2])
    assert draft.propose(3) == [3, 8, 2]  # the last occurrence of "2" before this one


class Vocabulary:
    """As much of a tokenizer as is compared."""

    def __init__(self, ids):
        self.ids = ids

    def get_vocab(self):
        return self.ids

    def decode(self, ids):
        raise AssertionError("nothing is decoded before the two are compared")


def test_drafts_that_are_refused():
    model = tiny_model()
    sentence = "SpeculativeDecoder: draft must have the target's vocab_size 61; got 60"
    assert_refused(
        ValueError, sentence, SpeculativeDecoder, model, draft=ModelDraft(tiny_model(["mamba2"], vocab_size=60))
    )
    words, others = Vocabulary({"a": 0, "b": 1, "c": 2}), Vocabulary({"a": 0, "c": 1, "b": 2})
    fewer = Vocabulary({"a": 0, "b": 1})
    for other, clause in ((others, "id 1 is 'c' instead of 'b'"), (fewer, "id 2 is none instead of 'c'")):
        sentence = f"SpeculativeDecoder: draft must have the target's tokenizer; got one where {clause}"
        draft = ModelDraft(model, tokenizer=other)
        assert_refused(ValueError, sentence, SpeculativeDecoder, model, draft=draft, tokenizer=words)
    SpeculativeDecoder(model, draft=ModelDraft(model, tokenizer=words), tokenizer=words)
    sentence = (
        "SpeculativeDecoder: draft must be a ModelDraft, or a function that makes a Draft for each sequence "
        "(such as the class PromptLookup), when batch is above 1; got one PromptLookup and batch = 2"
    )
    assert_refused(ValueError, sentence, SpeculativeDecoder, model, draft=PromptLookup(), batch=2)
    for draft, got in (("lookup", "str"), (tiny_model(["mamba2"]), "LlambaForCausalLM")):
        sentence = f"SpeculativeDecoder: draft must be a Draft, a function that makes one, or a ModelDraft; got {got}"
        assert_refused(TypeError, sentence, SpeculativeDecoder, model, draft=draft)
    sentence = "ModelDraft: model must be a LlambaForCausalLM; got Linear"
    assert_refused(TypeError, sentence, ModelDraft, torch.nn.Linear(2, 2))
    sentence = "ForcedDraft: sequences must hold one that begins with the prompt; got [1, 2]"
    assert_refused(ValueError, sentence, ForcedDraft([[1, 3]], 0, VOCAB).reset, [1, 2])
