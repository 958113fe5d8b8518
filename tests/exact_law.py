"""The exact law of a tiny hybrid's sampled tokens, from python_ref's fp64 model and transformers' warpers."""

import itertools
import math

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from python_ref.hybrid import hybrid_ref


def warped(logits, sampling):
    """Temperature, top-k and top-p by transformers, in double: its float sums may put the border elsewhere."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits.double())
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1.0:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores


def joint_law(model, prompt, sampling, skip, count):
    """Of tokens skip + 1 to skip + count after the prompt, (vocab ** count) fp64: from the slow reference's logits."""
    vocab, config = model.config.vocab_size, model.config.to_dict()
    parameters = {name: value.detach() for name, value in model.state_dict().items()}
    joint = []
    for tokens in itertools.product(range(vocab), repeat=skip + count - 1):
        logits = hybrid_ref([*prompt, *tokens], parameters, config)[len(prompt) - 1 :]
        laws = warped(logits, sampling).softmax(-1)  # row i: of the token after the first i
        before = math.prod(laws[i, token].item() for i, token in enumerate(tokens))
        joint.append(before * laws[-1])
    return torch.stack(joint).view(vocab**skip, vocab**count).sum(0)


def p_value(counts, law):
    """Of the hypothesis that the counts come from the law: Pearson's chi-square, cells that expect under 5 pooled."""
    expected = law * counts.sum()
    if counts[law == 0].any():
        return 0.0  # what cannot happen did
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare].double(), counts[rare].sum().double().view(1)])
        expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    occurs = expected > 0
    counts, expected = counts[occurs].double(), expected[occurs]
    chi2 = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), chi2 / 2).item()
