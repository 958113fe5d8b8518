"""speculative_accept against the same decision in vectorised torch; logits are warm, as they come from the LM head."""

import pytest
import torch

from llamba_kernels.ops import speculative_accept
from llamba_kernels.testing import make_speculative_accept_inputs

CASES = {
    "plain greedy": (1, 1, False, False),
    "greedy, window 4": (1, 4, False, False),
    "plain sampled": (1, 1, True, True),
    "sampled, certain drafts, window 4": (1, 4, True, True),
    "sampled, drafts with q, window 4": (1, 4, True, False),
    "sampled, drafts with q, batch 8, window 4": (8, 4, True, False),
}
VOCAB = 49152  # SmolLM2


def formula(logits, drafts, ntokens, draft_probs, uniforms, temperature):
    """All rows at once; as torch has no cheaper way to stop at the first rejection."""
    count, window, vocab = logits.shape
    is_draft = torch.arange(window - 1) < ntokens[:, None] - 1
    if uniforms is None:
        best = logits.argmax(-1)
        accepted = 1 + ((drafts == best[:, :-1]) & is_draft).long().cumprod(-1).sum(-1)
        return accepted.int(), best.gather(1, accepted[:, None] - 1)[:, 0]
    p = torch.softmax(logits.float() / temperature, -1)
    p_draft = p[:, :-1].gather(-1, drafts[..., None])[..., 0]
    q_draft = 1.0 if draft_probs is None else draft_probs.gather(-1, drafts[..., None])[..., 0]
    accepted = 1 + ((uniforms[:, :-1] * q_draft < p_draft) & is_draft).long().cumprod(-1).sum(-1)
    weights = p[torch.arange(count), accepted - 1]
    for b in (accepted < ntokens).nonzero()[:, 0].tolist():
        i = accepted[b] - 1
        if draft_probs is None:
            weights[b, drafts[b, i]] = 0
        else:
            weights[b] = (weights[b] - draft_probs[b, i]).clamp(min=0)
    cumulative = weights.double().cumsum(-1)
    return accepted.int(), torch.searchsorted(cumulative, uniforms[:, -1:] * cumulative[:, -1:], right=True)[:, 0]


@pytest.mark.parametrize("case", CASES)
def bench_speculative_accept(row, case):
    batch, window, sampled, certain = CASES[case]
    inputs = list(make_speculative_accept_inputs(batch, window, VOCAB, sampled, certain))
    inputs[0] = torch.randn(batch, window, VOCAB)  # whole windows: every row is read
    inputs[1], inputs[2] = inputs[0][:, :-1].argmax(-1), torch.full((batch,), window, dtype=torch.int32)
    if sampled:
        inputs[4] = torch.rand(batch, window, dtype=torch.float64)
    if inputs[3] is not None:
        inputs[3] = torch.softmax(inputs[0][:, :-1] + 0.5 * torch.randn(batch, window - 1, VOCAB), -1)

    def check():
        for actual, expected in zip(speculative_accept(*inputs), formula(*inputs), strict=True):
            assert torch.equal(actual, expected)

    row(
        case,
        lambda inputs: speculative_accept(*inputs),
        lambda inputs: formula(*inputs),
        [inputs],
        check,
        inputs[0].nbytes,
    )
