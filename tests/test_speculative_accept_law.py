"""speculative_accept emits tokens of exactly the target model's distribution: a statistical test, and its teeth."""

import itertools

import pytest
import torch

from llamba_kernels.ops import speculative_accept


def speculate(target, draft, count, certain, dtype, temperature, accept):
    """`count` sequences of three tokens over a small vocabulary, by `accept` on windows of 1 to 3.

    target and draft are logits [vocab, vocab, vocab]: [0, 0] for the first token, [1 + a, 0] after token a (modulo
    vocab - 1, which is all that the table holds), [1 + a, 1 + b] after a and b. What a window leaves open is drawn from
    the target itself, so the three tokens have the target's law exactly if accept is exact.
    """
    vocab = target.shape[-1]

    def context(first, second):  # rows of a table after two tokens; None: not yet there
        return (0 if first is None else 1 + first % (vocab - 1)), (0 if second is None else 1 + second % (vocab - 1))

    def law(logits):
        return torch.softmax(logits.to(dtype).double() / temperature, -1)

    def draw(p):
        return torch.multinomial(p, 1).squeeze(-1)

    q1 = law(draft[context(None, None)]).expand(count, vocab)
    d1 = q1.argmax(-1) if certain else draw(q1)
    q2 = law(draft[context(d1, None)])
    d2 = q2.argmax(-1) if certain else draw(q2)
    rows = [target[context(None, None)].expand(count, vocab), target[context(d1, None)], target[context(d1, d2)]]
    logits, drafts = torch.stack(rows, 1).to(dtype), torch.stack([d1, d2], 1)
    draft_probs = None if certain else torch.stack([q1, q2], 1).float()
    ntokens = torch.randint(1, 4, (count,), dtype=torch.int32)
    uniforms = torch.rand(count, 3, dtype=torch.float64)
    accepted, token = accept(logits, drafts, ntokens, draft_probs, uniforms, temperature)

    first = torch.where(accepted > 1, d1, token)
    second = torch.where(accepted > 2, d2, torch.where(accepted == 2, token, draw(law(target[context(first, None)]))))
    third = torch.where(accepted == 3, token, draw(law(target[context(first, second)])))
    observed = torch.bincount((first * vocab + second) * vocab + third, minlength=vocab**3)
    p1 = law(target[context(None, None)])
    expected = torch.empty(vocab, vocab, vocab, dtype=torch.float64)
    for a, b in itertools.product(range(vocab), repeat=2):
        expected[a, b] = p1[a] * law(target[context(a, None)])[b] * law(target[context(a, b)])
    return observed, expected.flatten(), accepted


def p_value_of_g_test(observed, expected):
    """Of the hypothesis that counts come from the law `expected`: G = 2 sum O ln(O / E) is chi-square."""
    counts = observed.double()
    ratio = torch.where(counts > 0, counts / (expected * counts.sum()), 1.0)
    g = 2 * (counts * ratio.log()).sum()
    return torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), g / 2).item()


def vectorised_accept(logits, drafts, ntokens, draft_probs, uniforms, temperature, *, residual=True, bonus_row=0):
    """A second formulation, over the whole batch at once, and two ways to break it."""
    count, window, vocab = logits.shape
    p = torch.softmax(logits.double() / temperature, -1)
    q = torch.nn.functional.one_hot(drafts, vocab).double() if draft_probs is None else draft_probs.double()
    p_draft, q_draft = (table[:, : window - 1].gather(-1, drafts[..., None])[..., 0] for table in (p, q))
    stays = (uniforms[:, :-1] * q_draft < p_draft) & (torch.arange(window - 1) < ntokens[:, None] - 1)
    accepted = 1 + stays.long().cumprod(-1).sum(-1)
    every = torch.arange(count)
    rejected = accepted < ntokens
    row = torch.where(rejected, accepted - 1, (accepted - 1 + bonus_row).clamp(min=0))
    weights = p[every, row]
    if residual:
        taken = (weights - q[every, row.clamp(max=window - 2)]).clamp(min=0)
        weights = torch.where(rejected[:, None], taken, weights)
    cumulative = weights.cumsum(-1)
    token = (cumulative > uniforms[:, -1:] * cumulative[:, -1:]).long().argmax(-1)
    return accepted.int(), token


def without_residual(*inputs):
    return vectorised_accept(*inputs, residual=False)


def bonus_from_the_row_before(*inputs):
    return vectorised_accept(*inputs, bonus_row=-1)


def make_tables(vocab=5):
    generator = torch.Generator().manual_seed(7)
    target = 1.5 * torch.randn(vocab, vocab, vocab, generator=generator)
    return target, target + torch.randn(vocab, vocab, vocab, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("certain", [False, True], ids=["drafts with q", "certain drafts"])
def test_emitted_tokens_have_the_target_law(certain, dtype, request):
    """Joint law of three tokens, 125 outcomes, 400,000 sequences; and as many drafts stay as can."""
    target, draft = make_tables()
    count = 20_000 if request.config.getoption("--device") == "simt" else 400_000  # there 400,000 take half a minute
    observed, expected, accepted = speculate(target, draft, count, certain, dtype, 0.7, speculative_accept)
    assert p_value_of_g_test(observed, expected) > 1e-3
    p, q = (torch.softmax(table[0, 0].to(dtype).double() / 0.7, -1) for table in (target, draft))
    q = torch.nn.functional.one_hot(q.argmax(), 5).double() if certain else q
    stays = 2 / 3 * torch.minimum(p, q).sum()  # two of three windows have a first draft
    assert abs((accepted > 1).double().mean() - stays) < 4 * (stays * (1 - stays) / count).sqrt()


@pytest.mark.parametrize("certain", [False, True], ids=["drafts with q", "certain drafts"])
@pytest.mark.parametrize("broken", [without_residual, bonus_from_the_row_before])
def test_the_law_test_has_teeth(certain, broken):
    """The same test passes the second formulation and rejects it broken."""
    target, draft = make_tables()
    observed, expected, _ = speculate(target, draft, 200_000, certain, torch.float32, 0.7, vectorised_accept)
    assert p_value_of_g_test(observed, expected) > 1e-3
    observed, expected, _ = speculate(target, draft, 200_000, certain, torch.float32, 0.7, broken)
    assert p_value_of_g_test(observed, expected) < 1e-9
