"""Forward passes that stop between layers: what ranking, alignment and distillation share."""

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from ..models import LlambaForCausalLM
from ..models.model import SequenceContext


def embed(model: LlambaForCausalLM, input_ids: Tensor) -> tuple[Tensor, SequenceContext]:
    """The first hidden state and what the layers share, for sequences without padding."""
    hidden = model.model.scale(model.model.embed_tokens(input_ids))
    return hidden, SequenceContext(model.config, hidden, None, None)


def run_layers(
    model: LlambaForCausalLM,
    hidden: Tensor,
    context: SequenceContext,
    start: int = 0,
    stop: int | None = None,
    deleted: Collection[int] = (),
) -> Tensor:
    """Layers start to stop - 1; those in `deleted` keep their MLP, if any, and lose their token mixer."""
    stop = len(model.model.layers) if stop is None else stop
    for i in range(start, stop):
        layer = model.model.layers[i]
        hidden = layer.feed_forward(hidden) if i in deleted else layer(hidden, context)
    return hidden


def read_out(model: LlambaForCausalLM, hidden: Tensor) -> Tensor:
    """What the product with lm_head.weight makes logits of."""
    normed, divisor = model.model.norm(hidden), model.config.logits_divisor
    return normed if divisor == 1 else normed / divisor


def fast_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bf16 matrix products where the device multiplies bf16 in hardware; fp32 where it would only emulate it."""
    if device.type == "cpu":
        native = torch.cpu.get_capabilities()
        enabled = bool(native.get("avx512_bf16") or native.get("amx_bf16"))
    else:
        enabled = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def autocast_dtype(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    """What matrix products take where autocast is on, else `otherwise`."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else otherwise


@contextlib.contextmanager
def frozen_casts(*models: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block, linear layers that take no gradient hold their weights in autocast's dtype.

    The products have the same bits, and each step saves the casts: autocast remembers only those of weights that train.
    A tied head is untied from the embedding meanwhile, which stays as it is.
    """
    with fast_autocast(device):
        dtype = autocast_dtype(device, torch.float32)
    linears = {module for model in models for module in model.modules() if isinstance(module, nn.Linear)}
    originals = {
        linear: linear.weight
        for linear in linears
        if linear.weight.dtype == torch.float32 != dtype
        and not (linear.weight.requires_grad and torch.is_grad_enabled())
    }
    try:
        for linear, weight in originals.items():
            linear.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        yield
    finally:
        for linear, weight in originals.items():
            linear.weight = weight
