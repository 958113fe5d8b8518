"""Models of any size with random weights, for measurements: made in place, about as fast as memory is written."""

import torch
from torch import Tensor, nn

from ..distill.progress import track
from .config import LlambaConfig
from .model import LlambaForCausalLM

BLOCK = 1_000_003  # numbers drawn; a prime, so that no two rows of a matrix begin at the same place of them


def random_model(config: LlambaConfig, dtype: torch.dtype = torch.float32, seed: int = 0) -> LlambaForCausalLM:
    """A model in eval mode whose matrices repeat one block of normal numbers, each from another place on.

    Norms are ones, biases zeros, and what a Mamba mixer's dynamics start with is as for training. Memory is asked for
    once, parameter by parameter.
    """
    with torch.device("meta"):
        model = LlambaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    block = (config.initializer_range * torch.randn(BLOCK, generator=generator)).to(dtype)
    for prefix, module in track(list(model.named_modules()), "random weights"):
        dynamics = module.initial_dynamics(generator) if hasattr(module, "initial_dynamics") else {}
        for name, value in dynamics.items():
            _set(module, name, value.to(dtype).clone())
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.is_meta or (prefix == "lm_head" and config.tie_word_embeddings):
                continue
            values = torch.empty(parameter.shape, dtype=dtype)
            if name == "bias":
                values.zero_()
            elif parameter.dim() == 1:
                values.fill_(1.0)
            else:
                _tile(values.view(-1), block, int(torch.randint(BLOCK, (), generator=generator)))
            _set(module, name, values)
    model.tie_weights()
    model.config.dtype = dtype
    return model.eval()


def _set(module: nn.Module, name: str, values: Tensor) -> None:
    owner, _, field = name.rpartition(".")
    setattr(module.get_submodule(owner), field, nn.Parameter(values))


def _tile(values: Tensor, block: Tensor, start: int) -> None:
    first = min(len(values), len(block) - start)
    values[:first] = block[start : start + first]
    whole = (len(values) - first) // len(block) * len(block)
    values[first : first + whole].view(-1, len(block)).copy_(block)
    values[first + whole :] = block[: len(values) - first - whole]
