"""Losses over a large vocabulary, computed from hidden states a few positions at a time."""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 256  # positions whose logits exist at once: 50 MB per fp32 tensor at a vocabulary of 49,152


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
        # Autocast does not remember the casts of frozen weights: without this each chunk would cast both heads anew.
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else student.dtype
        student_head, teacher_head = student_head.to(dtype), teacher_head.to(dtype)
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


@torch.no_grad()
def kl_divergence(reference: Tensor, hidden: Tensor, head: Tensor, chunk: int = CHUNK) -> float:
    """Mean KL(reference || hidden) over positions that share a head; no gradient."""
    total = 0.0
    for a, b in zip(reference.split(chunk), hidden.split(chunk), strict=True):
        log_p, log_q = log_probabilities(a, head), log_probabilities(b, head)
        total += F.kl_div(log_q, log_p, log_target=True, reduction="sum").item()
    return total / len(reference)


@torch.no_grad()
def next_token_nll(hidden: Tensor, head: Tensor, targets: Tensor, chunk: int = CHUNK) -> float:
    """Summed negative log likelihood, in nats, of `targets` (positions) given hidden states (positions, hidden)."""
    pairs = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return sum(F.nll_loss(log_probabilities(h, head), t, reduction="sum").item() for h, t in pairs)


def log_probabilities(hidden: Tensor, head: Tensor) -> Tensor:
    """(rows, vocab) fp32."""
    return torch.log_softmax(F.linear(hidden, head.to(hidden.dtype)).float(), dim=-1)
