"""Losses over a large vocabulary, computed from hidden states a few positions at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .forward import autocast_dtype

# Positions whose logits exist at once: 12.6 MB per fp32 tensor at a vocabulary of 49,152. With 128, which a CPU's cache
# and the C library's heap no longer hold, log_softmax was measured to take four times as long per position.
CHUNK = 64


def distillation_loss(
    student: Tensor,
    student_head: Tensor,
    teacher: Tensor,
    teacher_head: Tensor,
    labels: Tensor | None = None,
    ce_weight: float = 0.0,
    chunk: int = CHUNK,
) -> Tensor:
    """KL(teacher || student) + ce_weight * cross entropy, each the mean over positions.

    Args:
        student, teacher: (positions, hidden), after the final norm; the hidden sizes may differ.
        student_head, teacher_head: (vocab, hidden), both frozen: only `student` receives a gradient.
        labels: (positions) next tokens; needed only with ce_weight.
    """
    if ce_weight and labels is None:
        raise ValueError(f"distillation_loss: labels must be given with ce_weight; got None and {ce_weight}")
    return _DistillationLoss.apply(
        student, student_head, teacher, teacher_head, labels if ce_weight else None, ce_weight, chunk
    )


class _DistillationLoss(torch.autograd.Function):
    """The gradient is formed in the forward pass, while a chunk's logits exist, so no logits are kept or recomputed."""

    @staticmethod
    def forward(ctx, student, student_head, teacher, teacher_head, labels, ce_weight, chunk):
        count, device = len(student), student.device
        gradient = torch.empty_like(student)
        loss = torch.zeros((), device=device)
        dtype = autocast_dtype(device, student.dtype)
        student, student_head, teacher, teacher_head = (
            t.to(dtype) for t in (student, student_head, teacher, teacher_head)
        )
        for start in range(0, count, chunk):
            rows = slice(start, start + chunk)
            log_q = log_probabilities(student[rows], student_head)  # [rows, vocab] fp32
            log_p = log_probabilities(teacher[rows], teacher_head)
            # In place from here on: these are the largest tensors of the whole step.
            p = log_p.exp()
            loss += torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
            if labels is not None:
                loss += ce_weight * F.nll_loss(log_q, labels[rows], reduction="sum")
                p[torch.arange(len(p), device=device), labels[rows]] += ce_weight
            d_logits = log_q.exp_().mul_(1 + ce_weight).sub_(p).div_(count)  # d KL = q - p, d CE = q - onehot
            gradient[rows] = d_logits.to(dtype) @ student_head
        ctx.save_for_backward(gradient)
        return loss / count

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, *[None] * 6


def next_token_loss(hidden: Tensor, head: Tensor, labels: Tensor, chunk: int = CHUNK) -> Tensor:
    """Mean cross entropy of `labels` (positions) given hidden states (positions, hidden) and a head that trains, too.

    A chunk's logits exist in fp32; their gradients, in the dtype of the products, for eight chunks at once: the head's
    gradient is as large as the head, and is added up once per eight.
    """
    return _NextTokenLoss.apply(hidden, head, labels, chunk)


class _NextTokenLoss(torch.autograd.Function):
    """As `_DistillationLoss`, the gradients are formed while the logits exist; here the head has one as well."""

    @staticmethod
    def forward(ctx, hidden, head, labels, chunk):
        count, device = len(hidden), hidden.device
        dtype = autocast_dtype(device, hidden.dtype)
        narrow_head, narrow = head.to(dtype), hidden.to(dtype)
        d_hidden, d_head = torch.empty_like(hidden), torch.zeros_like(head)
        loss = torch.zeros((), device=device)
        for start in range(0, count, 8 * chunk):
            block = slice(start, min(start + 8 * chunk, count))
            d_logits = narrow.new_empty(block.stop - start, len(head))
            for first in range(start, block.stop, chunk):
                rows = slice(first, min(first + chunk, block.stop))
                log_q = log_probabilities(narrow[rows], narrow_head)  # [rows, vocab] fp32
                loss += F.nll_loss(log_q, labels[rows], reduction="sum")
                q = log_q.exp_()
                q[torch.arange(len(q), device=device), labels[rows]] -= 1
                d_logits[first - start : rows.stop - start] = q.div_(count)
            d_hidden[block] = (d_logits @ narrow_head).to(d_hidden.dtype)
            d_head += d_logits.T @ narrow[block]
        ctx.save_for_backward(d_hidden, d_head)
        return loss / count

    @staticmethod
    def backward(ctx, upstream):
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * upstream, d_head * upstream, None, None


@torch.no_grad()
def kl_divergence(reference: Tensor, hidden: Tensor, head: Tensor, chunk: int = CHUNK) -> float:
    """Mean KL(reference || hidden) over positions that share a head; no gradient."""
    dtype = autocast_dtype(hidden.device, hidden.dtype)
    reference, hidden, head = reference.to(dtype), hidden.to(dtype), head.to(dtype)
    total = 0.0
    for a, b in zip(reference.split(chunk), hidden.split(chunk), strict=True):
        log_p, log_q = log_probabilities(a, head), log_probabilities(b, head)
        total += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    return total / len(reference)


@torch.no_grad()
def next_token_nll(hidden: Tensor, head: Tensor, targets: Tensor, chunk: int = CHUNK) -> float:
    """Summed negative log likelihood, in nats, of `targets` (positions) given hidden states (positions, hidden)."""
    dtype = autocast_dtype(hidden.device, hidden.dtype)
    hidden, head = hidden.to(dtype), head.to(dtype)
    pairs = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return sum(F.nll_loss(log_probabilities(h, head), t, reduction="sum").item() for h, t in pairs)


def log_probabilities(hidden: Tensor, head: Tensor) -> Tensor:
    """(rows, vocab) fp32. Both arguments have the dtype of the product: else autocast would cast the head each time."""
    return torch.log_softmax(F.linear(hidden, head).float(), dim=-1)
