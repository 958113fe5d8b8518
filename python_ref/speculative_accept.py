"""Acceptance of a drafted window, sequence by sequence."""

import torch


def speculative_accept_ref(logits, drafts, ntokens, draft_probs=None, uniforms=None, temperature=1.0):
    """accepted (batch) int32 and next_token (batch) int64; argument order as the op."""
    accepted, next_token = [], []
    for b, count in enumerate(ntokens.tolist()):
        decide = _greedy if uniforms is None else _sampled
        stay, token = decide(
            logits[b, :count].double() / temperature,
            drafts[b, : count - 1].tolist(),
            None if draft_probs is None else draft_probs[b].double(),
            None if uniforms is None else uniforms[b].tolist(),
        )
        accepted.append(stay)
        next_token.append(token)
    return torch.tensor(accepted, dtype=torch.int32), torch.tensor(next_token, dtype=torch.int64)


def _greedy(logits, drafts, _draft_probs, _uniforms):
    best = [(row == row.max()).nonzero()[0].item() for row in logits]  # the lowest index of ties
    stay = 1
    while stay < len(best) and drafts[stay - 1] == best[stay - 1]:
        stay += 1
    return stay, best[stay - 1]


def _sampled(logits, drafts, draft_probs, uniforms):
    p = torch.softmax(logits, dim=-1)
    for i, draft in enumerate(drafts):
        q = torch.nn.functional.one_hot(torch.tensor(draft), p.shape[1]).double() if draft_probs is None else draft_probs[i]
        if not uniforms[i] * q[draft] < p[i, draft]:
            residual = (p[i] - q).clamp(min=0)
            return i + 1, _inverse_cdf(residual if residual.sum() > 0 else p[i], uniforms[-1])
    return len(drafts) + 1, _inverse_cdf(p[-1], uniforms[-1])


def _inverse_cdf(weights, u):
    """The first token whose cumulative weight exceeds u times the total."""
    cumulative = weights.cumsum(0)
    return (cumulative > u * cumulative[-1]).nonzero()[0].item()
