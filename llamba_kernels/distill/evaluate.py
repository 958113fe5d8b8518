"""Perplexity and bits per byte on text that no training has seen."""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..models import LlambaForCausalLM, load_model, load_tokenizer
from .forward import embed, fast_autocast, frozen_casts, read_out, run_layers
from .losses import next_token_nll
from .progress import track
from .text import read_text, token_windows, untrained_text


@dataclass(frozen=True)
class Evaluation:
    perplexity: float
    bits_per_byte: float
    tokens: int
    seconds: float


def evaluate(
    model_dir: str | Path,
    data: str | Path | Sequence[str | Path] | None = None,
    deleted: Collection[int] = (),
    tokens: int = 12_288,
    window: int = 512,
    untrained: bool = False,
) -> Evaluation:
    """Score a model folder on the held-out part of `data`, in windows that each start without context.

    Args:
        deleted: layers whose token mixer is left out: the control that a converted model has to beat.
        untrained: `data` is of a domain not trained on, all of it counts, and the default is `untrained_text`'s.
    """
    model = load_model(model_dir)
    tokenizer = load_tokenizer(model_dir, model)
    chunks = untrained_text(data) if untrained else read_text(data).held_out
    windows = token_windows(tokenizer, chunks, window, max(1, tokens // window))
    return evaluate_windows(model, tokenizer, windows, deleted)


def evaluate_windows(
    model: LlambaForCausalLM, tokenizer: PreTrainedTokenizerBase, windows: Tensor, deleted: Collection[int] = ()
) -> Evaluation:
    """As `evaluate`, on (count, window) token ids."""
    for layer in deleted:
        if not 0 <= layer < model.config.num_hidden_layers:
            raise ValueError(f"eval: deleted must be in 0..{model.config.num_hidden_layers - 1}; got {layer}")
    started = time.perf_counter()
    nll = 0.0
    with torch.no_grad(), frozen_casts(model, device=model.device), fast_autocast(model.device):
        for batch in track(windows.split(4), "eval"):
            batch = batch.to(model.device)
            hidden, context = embed(model, batch)
            hidden = read_out(model, run_layers(model, hidden, context, deleted=deleted))
            nll += next_token_nll(hidden[:, :-1].flatten(0, 1), model.lm_head.weight, batch[:, 1:].flatten())
    predicted = windows[:, 1:]
    texts = tokenizer.batch_decode(predicted.tolist(), clean_up_tokenization_spaces=False)
    byte_count = sum(len(text.encode()) for text in texts)
    return Evaluation(
        perplexity=math.exp(nll / predicted.numel()),
        bits_per_byte=nll / math.log(2) / byte_count,
        tokens=predicted.numel(),
        seconds=time.perf_counter() - started,
    )
