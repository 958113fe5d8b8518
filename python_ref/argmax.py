"""The greedy token of every row of logits, logit by logit."""

import torch


def argmax_ref(logits):
    """(...) int64, the lowest index of ties."""
    rows = logits.reshape(logits.shape[:-1].numel(), logits.shape[-1]).tolist()
    return torch.tensor([_first_largest(row) for row in rows], dtype=torch.int64).view(logits.shape[:-1])


def _first_largest(row):
    best = 0
    for token, logit in enumerate(row):
        if logit > row[best]:
            best = token
    return best
