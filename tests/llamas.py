"""Random Llamas and hybrids of odd sizes: one that has everything, then one factor changed per row."""

import torch

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # logits large enough that a relative error means something
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMAS = {
    "base": {},
    "tied": {"tie_word_embeddings": True},
    "no key/value sharing": {"num_key_value_heads": 6},
    "head_dim not hidden/heads": {"head_dim": 12},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope scaling": {"rope_parameters": LLAMA3_ROPE},
    "yarn rope scaling": {"rope_parameters": YARN_ROPE},
    "linear rope scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}},
}
# The state is wider than the heads, so that exchanging the two shows.
HYBRID = {**SIZES, "layers": ["mamba2", "attention", "mamba2"], "mamba_d_state": 16}
OWN_SIZES = {
    "mamba_num_heads": 9,
    "mamba_head_dim": 20,
    "mamba_d_state": 48,
    "mamba_x_heads": 3,
    "mamba_B_heads": 1,
    "mamba_C_heads": 9,
    "mamba_norm_group_size": 60,
}
HYBRIDS = {
    "base": {},
    "mamba2 only": {"layers": ["mamba2"] * 3},
    "mixers of other sizes than the attention": OWN_SIZES,
    "stock mamba-2 groups": {"mamba_x_heads": 6, "mamba_B_heads": 2, "mamba_C_heads": 2, "mamba_norm_group_size": 24},
    "conv width 2": {"mamba_d_conv": 2},
    "conv width 3": {"mamba_d_conv": 3},
    "tied": {"tie_word_embeddings": True},
    "biases, llama3 rope scaling": {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3_ROPE},
}


def randomize(model):
    """Biases, norms and D start as zeros and ones, which would hide that they are not used."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or name.endswith(".D"):
                parameter.normal_()
            elif "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model.eval()
