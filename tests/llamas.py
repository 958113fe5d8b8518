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


# A stock Mamba-1 layer, an MLP alone, an attention without one: what only some families have.
KINDS = {
    **SIZES,
    "num_hidden_layers": 4,
    "layers": ["mamba1", "attention", "none", "mamba2"],
    "mlp_layers": [False, True, True, False],
    "mamba_d_state": 16,
    "mamba1_d_inner": 72,
    "mamba1_dt_rank": 5,
}
FROM_INPUT = {"mamba1_selection": "input", "mamba1_d_inner": 96, "head_dim": 16, "mamba1_dt_bias_count": 2}
KINDS_CHANGES = {
    "base": {},
    "mamba1 only, with MLPs": {"layers": ["mamba1"] * 4, "mlp_layers": None},
    "falcon-mamba's norms": {"layers": ["mamba1"] * 4, "mlp_layers": [False] * 4, "mamba1_inner_norm": "plain"},
    "jamba's norms": {"mamba1_inner_norm": "weighted", "rotary_dim": 0},
    "attention-initialised mamba1": FROM_INPUT,
    "attention-initialised, shared otherwise": FROM_INPUT
    | {"mamba1_d_state": 32, "mamba1_x_heads": 1, "mamba1_B_heads": 6, "mamba1_C_heads": 2, "mamba_d_conv": 3},
    "grouped B and C, wide state": {"mamba1_d_state": 48, "mamba1_B_heads": 3, "mamba1_C_heads": 2, "mamba_d_conv": 2},
    "biases the other way": {"mamba_proj_bias": True, "mamba_conv_bias": False, "mlp_bias": True},
    "some of a head rotates": {"rotary_dim": 4},
    "sliding window": {"sliding_window": 5, "layers": ["mamba1", "attention", "attention", "mamba2"]},
    "multipliers": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "logits_divisor": 2.5,
        "attention_scale": 0.2,
    },
    "ungated relu2": {"mlp_gated": False, "hidden_act": "relu2", "mamba_norm_eps": 1e-2},
}
