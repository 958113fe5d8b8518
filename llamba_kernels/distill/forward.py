"""Forward passes that stop between layers: what ranking, alignment and distillation share."""

import contextlib
from collections.abc import Collection

import torch
from torch import Tensor

from ..models import LlambaForCausalLM
from ..models.model import SequenceContext


def embed(model: LlambaForCausalLM, input_ids: Tensor) -> tuple[Tensor, SequenceContext]:
    """The first hidden state and what the layers share, for sequences without padding."""
    hidden = model.model.embed_tokens(input_ids)
    return hidden, SequenceContext(model.config, hidden, None, None)


def run_layers(
    model: LlambaForCausalLM,
    hidden: Tensor,
    context: SequenceContext,
    start: int = 0,
    stop: int | None = None,
    deleted: Collection[int] = (),
) -> Tensor:
    """Layers start to stop - 1; those in `deleted` keep their MLP and lose their token mixer."""
    stop = len(model.model.layers) if stop is None else stop
    for i in range(start, stop):
        layer = model.model.layers[i]
        hidden = layer.feed_forward(hidden) if i in deleted else layer(hidden, context)
    return hidden


def fast_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bf16 matrix products where the device multiplies bf16 in hardware; fp32 where it would only emulate it."""
    if device.type == "cpu":
        native = torch.cpu.get_capabilities()
        enabled = bool(native.get("avx512_bf16") or native.get("amx_bf16"))
    else:
        enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
