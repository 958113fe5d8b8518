"""Small random models of other implementations, at odd sizes, saved as their users find them."""

import contextlib
import logging

import torch
import transformers
from llamas import LLAMA3_ROPE, randomize

LIMITLESS = {"time_step_limit": (0.0, float("inf"))}
# Logits large enough that a relative error means something, and norms that do not divide by next to nothing.
COMMON = {"vocab_size": 97, "hidden_size": 48, "initializer_range": 0.15}
BACKBONE = {**COMMON, "num_hidden_layers": 3, "layer_norm_epsilon": 0.1}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 80}
TRANSFORMER = {**COMMON, **ATTENTION, "num_hidden_layers": 3, "rms_norm_eps": 0.1}
# Three heads of 80 channels in three groups, 96 state columns.
MIXER = {"mamba_n_heads": 3, "mamba_d_head": 80, "mamba_d_state": 96, "mamba_n_groups": 3, "mamba_expand": 5}
MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.4}

# family -> (transformers' prefix of the classes, configuration)
FOREIGN = {
    "llama": ("Llama", {**TRANSFORMER, "rope_parameters": LLAMA3_ROPE}),
    "mistral": ("Mistral", {**TRANSFORMER, "sliding_window": 7, "head_dim": 16}),
    "mamba": ("Mamba", {**BACKBONE, "state_size": 32, "time_step_rank": 5, "conv_kernel": 3}),
    "mamba, biases": ("Mamba", {**BACKBONE, "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False}),
    "falcon_mamba": (
        "FalconMamba",
        {**BACKBONE, "expand": 16, "intermediate_size": 112, "mixer_rms_eps": 0.05, "tie_word_embeddings": False},
    ),
    "mamba2": ("Mamba2", {**BACKBONE, "num_heads": 3, "head_dim": 80, "expand": 5, "state_size": 96, "n_groups": 3}),
    "mamba2, biases": (
        "Mamba2",
        {**BACKBONE, "num_heads": 6, "head_dim": 16, "state_size": 16, "n_groups": 1, "use_bias": True},
    ),
    "bamba": ("Bamba", {**TRANSFORMER, **MIXER, "attn_layer_indices": [1]}),
    "jamba": ("Jamba", {**TRANSFORMER, "attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 1}),
    "nemotron_h": (
        "NemotronH",
        {
            **COMMON,
            **ATTENTION,
            "head_dim": 16,
            "layer_norm_epsilon": 0.1,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
            "mamba_num_heads": 3,
            "mamba_head_dim": 80,
            "ssm_state_size": 96,
            "n_groups": 3,
            "time_step_min": 1e-30,  # transformers clips by it, in prefill but not in decoding; NVIDIA's code does not
        },
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **TRANSFORMER,
            **MIXER,
            **MULTIPLIERS,
            "logits_scaling": 2.0,
            "num_local_experts": 0,
            "shared_intermediate_size": 80,
            "position_embedding_type": "rope",
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        },
    ),
    "granitemoehybrid, no positions": (
        "GraniteMoeHybrid",
        {
            **TRANSFORMER,
            **MIXER,
            "num_local_experts": 0,
            "shared_intermediate_size": 80,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
            "tie_word_embeddings": True,
        },
    ),
}


def make_foreign(family, dtype=torch.float32, **change):
    prefix, settings = FOREIGN[family]
    torch.manual_seed(1)
    config = getattr(transformers, f"{prefix}Config")(**{**settings, **change})
    return randomize(getattr(transformers, f"{prefix}ForCausalLM")(config)).to(dtype)


@contextlib.contextmanager
def without_warnings():
    """transformers tells of every kernel that it does without."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
