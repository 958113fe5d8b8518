"""How far a model's greedy text agrees with its teacher's."""

from collections.abc import Collection, Sequence

import torch

from .distill.forward import embed, read_out, run_layers
from .models import LlambaForCausalLM


def common_prefix(texts: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> float:
    """The mean number of tokens before the first that differs between the two texts of a prompt."""
    lengths = []
    for text, other in zip(texts, others, strict=True):
        pairs = zip(text, other, strict=True)
        lengths.append(next((i for i, (mine, theirs) in enumerate(pairs) if mine != theirs), len(text)))
    return sum(lengths) / len(lengths)


@torch.no_grad()
def same_next_token(
    model: LlambaForCausalLM,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    deleted: Collection[int] = (),
) -> float:
    """The share of the tokens of `texts` that are the model's own greedy choice after the prompt and the text so far.

    One full-precision pass per prompt and text; the model's own text has 1. deleted: as in `distill.evaluate`.
    """
    same = total = 0
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([[*prompt, *text]])
        hidden, context = embed(model, ids)
        hidden = read_out(model, run_layers(model, hidden, context, deleted=deleted))
        choices = model.lm_head(hidden[0, len(prompt) - 1 : -1]).argmax(-1)
        same += int((choices == ids[0, len(prompt) :]).sum())
        total += len(text)
    return same / total
