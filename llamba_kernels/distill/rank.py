"""Which attention layers matter least: delete each one and measure how far the model's output moves."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models import LlambaForCausalLM, load_model, load_tokenizer
from .forward import embed, fast_autocast, frozen_casts, read_out, run_layers
from .losses import kl_divergence
from .progress import track
from .text import read_text, token_windows


@dataclass(frozen=True)
class Ranking:
    """Attention layers from least to most important; kl[i] is KL(teacher || teacher without layer i's attention)."""

    order: list[int]
    kl: dict[int, float]
    tokens: int
    seconds: float

    def least_important(self, count: int) -> list[int]:
        if not 0 < count <= len(self.order):
            raise ValueError(f"rank-layers: count must be in 1..{len(self.order)}, the attention layers; got {count}")
        return sorted(self.order[:count])


def rank_layers(
    teacher_dir: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    tokens: int = 2048,
    window: int = 512,
    seed: int = 0,
) -> Ranking:
    """Rank the attention layers of a model folder by deletion on the training part of `data`; forward passes only."""
    teacher = load_model(teacher_dir)
    tokenizer = load_tokenizer(teacher_dir, teacher)
    windows = token_windows(tokenizer, read_text(data).train, window, max(1, tokens // window), f"rank-layers {seed}")
    return rank_model(teacher, windows)


def rank_model(teacher: LlambaForCausalLM, windows: Tensor, every: int = 4) -> Ranking:
    """As `rank_layers`, on (count, window) token ids. The KL is taken at every `every`-th position: neighbours say
    nearly the same, and with a large vocabulary the output costs as much as many layers.
    """
    started = time.perf_counter()
    attention = [i for i, kind in enumerate(teacher.config.layers) if kind == "attention"]

    with torch.no_grad(), frozen_casts(teacher, device=teacher.device), fast_autocast(teacher.device):
        below, context = embed(teacher, windows.to(teacher.device))

        def final(hidden: Tensor) -> Tensor:
            return read_out(teacher, hidden)[:, ::every].flatten(0, 1)

        inputs = [below]
        for i in range(teacher.config.num_hidden_layers):
            inputs.append(run_layers(teacher, inputs[-1], context, i, i + 1))
        reference, head = final(inputs[-1]), teacher.lm_head.weight
        # A deletion changes nothing below it, so each run starts at the deleted layer: half the work.
        kl = {
            i: kl_divergence(reference, final(run_layers(teacher, inputs[i], context, i, deleted=[i])), head)
            for i in track(attention, "rank-layers")
        }
    return Ranking(sorted(attention, key=kl.__getitem__), kl, windows.numel(), time.perf_counter() - started)
