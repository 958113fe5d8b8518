"""Models of a few thousand parameters to decode speculatively, and a prompt for them."""

import torch

from llamba_kernels.models import LlambaConfig, LlambaForCausalLM

PROMPT = [5, 6, 7, 8, 5, 6, 7, 9, 5, 6]
VOCAB = 61
LAYERS = ("attention", "mamba2", "attention", "mamba2")


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "bos_token_id": None,
}
NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def tiny_model(layers=LAYERS, dtype=torch.float32, seed=0, **changes):
    """Random weights, wide enough apart that greedy output is not one repeated token; `changes` of the sizes."""
    torch.manual_seed(seed)
    config = LlambaConfig(**{**SIZES, **changes}, layers=list(layers), num_hidden_layers=len(layers))
    return LlambaForCausalLM(config).eval().to(dtype)
