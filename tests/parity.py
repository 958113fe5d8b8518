"""One sequence's logits by every way there is, row t from tokens 0 to t: what the parity tests compare."""

import torch

from llamba_kernels.cache import DecodeCache, Session
from llamba_kernels.models.step import StepModel
from python_ref.hybrid import hybrid_ref

STEPS = 40  # tokens decoded after the prompt
MAX_WINDOW, FOLD_EVERY, MAX_ROLLBACK = 5, 3, 4


@torch.inference_mode()
def theirs_by_step(model, tokens, prompt):
    """transformers' model: a prompt of `prompt` tokens, then one token at a time with its own cache."""
    output = model(tokens[None, :prompt], use_cache=True)
    rows = [output.logits[0]]
    for position, token in enumerate(tokens[prompt:], start=prompt):
        if "cache_params" in output:  # a stack of mixers, which has no positions
            cache = {"cache_params": output.cache_params}
        else:  # Bamba starts counting again unless it is told
            cache = {"past_key_values": output.past_key_values, "position_ids": torch.tensor([[position]])}
        output = model(token.view(1, 1), use_cache=True, **cache)
        rows.append(output.logits[0])
    return torch.cat(rows)


@torch.inference_mode()
def exact_logits(model, tokens, stored_dtype=None):
    """The slow reference in fp64, on the model's own parameters."""
    parameters = {name: parameter.double() for name, parameter in model.named_parameters()}
    return hybrid_ref(tokens.tolist(), parameters, model.config.to_dict(), stored_dtype=stored_dtype)


class Decoding:
    """Our model decoding a sequence whose right tokens are known, after a prefill of its first `prompt` tokens."""

    def __init__(self, model, tokens, prompt):
        session = Session(MAX_WINDOW, FOLD_EVERY, MAX_ROLLBACK, model.config.mamba_d_conv)
        cache = DecodeCache(model.config, len(tokens) + MAX_WINDOW, session, dtype=model.dtype)
        self.step, self.cursor = StepModel(model, cache), cache.cursor
        self.tokens, self.position, self.slot = tokens, prompt, torch.zeros(1, dtype=torch.int32)
        self.last_of_prompt = cache.prefill(model, 0, tokens[:prompt])
        self.rejected = self.rolled_back = 0

    def verify(self, right, wrong=()):
        """A step over the next `right` tokens and wrong drafts after them: the former stay. Their logits."""
        window = torch.cat([self.tokens[self.position : self.position + right], torch.tensor(wrong).long()])
        self.cursor.begin(self.slot, torch.tensor([len(window)], dtype=torch.int32))
        logits = self.step(self.slot, window[None])[0, :right].clone()
        self.cursor.commit(self.slot, torch.tensor([right], dtype=torch.int32))
        self.position += right
        self.rejected += len(wrong)
        return logits

    def rollback(self, count):
        self.cursor.rollback(self.slot, torch.tensor([count], dtype=torch.int32))
        self.position -= count
        self.rolled_back += count


def prefill(model, tokens, prompt):
    """(logits, their rows): the prompt, by our full forward."""
    with torch.inference_mode():
        return model(tokens[None, :prompt]).logits[0], torch.arange(prompt)


def by_step(model, tokens, prompt):
    """(logits, their rows): the prompt's last token as the cache's prefill gives it, then one token a step."""
    decoding = Decoding(model, tokens, prompt)
    steps = [decoding.verify(1) for _ in tokens[prompt:]]
    return torch.cat([decoding.last_of_prompt[None], *steps]), torch.arange(prompt - 1, len(tokens))


def after_rollbacks(model, tokens, prompt):
    """(logits, their rows), a row as often as it was decoded: random windows, wrong drafts, rollbacks, to the end."""
    generator = torch.Generator().manual_seed(prompt)
    decoding, logits, rows = Decoding(model, tokens, prompt), [], []

    def draw(most):
        return int(torch.randint(most + 1, (), generator=generator))

    while decoding.position < len(tokens) or min(decoding.rejected, decoding.rolled_back) < STEPS // 4:
        start = decoding.position
        if start < len(tokens):
            right = min(1 + draw(MAX_WINDOW - 1), len(tokens) - start)
            wrong = torch.randint(model.config.vocab_size, (draw(MAX_WINDOW - right),), generator=generator)
            logits.append(decoding.verify(right, wrong.tolist()))
            rows.append(torch.arange(start, start + right))
        live = int(decoding.cursor.table[0, 1])
        decoding.rollback(draw(min(MAX_ROLLBACK, live, decoding.position - prompt)))
    return torch.cat(logits), torch.cat(rows)


WAYS = prefill, by_step, after_rollbacks


def errors(logits, expected):
    """The largest difference of a logit, and the root of their mean square."""
    difference = (logits.double() - expected.double()).flatten()
    return torch.stack([difference.abs().max(), difference.square().mean().sqrt()])


def assert_fp32_parity(model, sequences, expected_logits, ways=WAYS):
    """sequences: (tokens, prompt). expected_logits(tokens, prompt) gives them. Returns the largest relative error."""
    worst = 0.0
    for tokens, prompt in sequences:
        expected = expected_logits(tokens, prompt)
        for way in ways:
            logits, rows = way(model, tokens, prompt)
            relative = (errors(logits, expected[rows])[0] / expected.abs().max()).item()
            assert relative <= 1e-4, f"{way.__name__}, prompt of {prompt}: {relative:.2g} of the largest logit"
            worst = max(worst, relative)
    return worst


def assert_bf16_parity(model, sequences, expected_logits, yardstick_logits, ways=WAYS):
    """Both errors, over all sequences, at most twice the yardstick's on the same rows. Returns way -> ours, theirs."""
    found = {way.__name__: [] for way in ways}
    for tokens, prompt in sequences:
        expected, yardstick = expected_logits(tokens, prompt), yardstick_logits(tokens, prompt)
        for way in ways:
            logits, rows = way(model, tokens, prompt)
            theirs = errors(yardstick[rows], expected[rows])
            found[way.__name__].append(torch.stack([errors(logits, expected[rows]), theirs]))
    pooled = {name: _pooled(torch.stack(each)).tolist() for name, each in found.items()}
    for name, (ours, theirs) in pooled.items():
        for kind, our, their in zip(("largest", "rms"), ours, theirs, strict=True):
            assert our <= 2 * their, f"{name}: {kind} error {our:.3g}; the yardstick's is {their:.3g}"
    return pooled


def _pooled(each):
    """(sequences, 2, 2) -> (2, 2): the largest of the largest errors, whose luck differs, and one rms of all."""
    return torch.stack([each[..., 0].amax(0), each[..., 1].square().mean(0).sqrt()], dim=-1)
