"""Models of a few thousand parameters to decode speculatively, and a prompt for them."""

import torch

from llamba_kernels.models import LlambaConfig, LlambaForCausalLM

PROMPT = [5, 6, 7, 8, 5, 6, 7, 9, 5, 6]
VOCAB = 61
LAYERS = ("attention", "mamba2", "attention", "mamba2")


def tiny_model(layers=LAYERS, dtype=torch.float32, seed=0, hidden_act="silu", vocab_size=VOCAB):
    """Random weights, wide enough apart that greedy output is not one repeated token."""
    torch.manual_seed(seed)
    config = LlambaConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=len(layers),
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        hidden_act=hidden_act,
        layers=list(layers),
        max_position_embeddings=256,
        initializer_range=0.2,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlambaForCausalLM(config).eval().to(dtype)
