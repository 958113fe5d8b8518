"""Published models by name, as their own config.json describes them: for benchmarks and runs with random weights.

mamba-130m, -790m, -2.8b       state-spaces' Mamba (arXiv 2312.00752), transformers' layout
mamba-7b-rw                    Toyota Research Institute's Mamba
falcon-mamba-7b                TII (arXiv 2410.05355)
bamba-9b-v1, -v2               IBM, Princeton, CMU, UIUC; v2 continues v1's training, so its shapes are taken for v1's
mamba2-hybrid-8b               NVIDIA (arXiv 2406.07887), in Nemotron-H's layout: the original is Megatron's
jamba-v0.1                     AI21 (arXiv 2403.19887); refused, for its experts
mamba1-in-llama-8b-att50, ...  MambaInLlama (arXiv 2408.15237); the number: how many percent of attention are left
zephyr-7b, llama-*             its teachers
"""

import math

from .config import LlambaConfig
from .families import config_of


def _mamba(hidden: int, layers: int, vocab: int = 50280, **changes) -> dict:
    return {
        "model_type": "mamba",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "intermediate_size": 2 * hidden,
        "state_size": 16,
        "conv_kernel": 4,
        "time_step_rank": math.ceil(hidden / 16),
        "tie_word_embeddings": True,
        **changes,
    }


def _llama(hidden: int, intermediate: int, layers: int, heads: int, **changes) -> dict:
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        **changes,
    }


def _llama3_rope(factor: float) -> dict:
    scaling = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, **scaling}
    return {"rope_parameters": rope, "max_position_embeddings": 131072}


def _in_llama(llama: dict, attention: range, kind: str) -> dict:
    """config.json is the teacher's, mamba_config.json lies beside it."""
    d_inner = llama["num_attention_heads"] * 128
    heads = {"ngroups": llama["num_attention_heads"], "d_state": 128} if kind == "mamba2" else {}
    mamba = {
        "d_model": llama["hidden_size"],
        "ssm_cfg": {"expand": 1, **heads},
        "rms_norm_eps": 1e-5,
        "d_inner": d_inner,
        "d_xb": 1024,
        "intermediate_size": llama["intermediate_size"],
        "hidden_act": "silu",
        "n_layer": llama["num_hidden_layers"],
        "attn_layers": list(attention),
    }
    return {**llama, "mamba_config": mamba}


FALCON_MAMBA = {"model_type": "falcon_mamba", "tie_word_embeddings": False, "mixer_rms_eps": 1e-6}
BAMBA = {
    "model_type": "bamba",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attn_layer_indices": [9, 18, 27],
    "attn_rotary_emb": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "mamba_n_heads": 128,
    "mamba_d_head": 64,
    "mamba_n_groups": 1,
    "mamba_d_state": 128,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
NVIDIA_HYBRID = {
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-",
    "vocab_size": 256000,
    "hidden_size": 4096,
    "num_hidden_layers": 56,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 16384,
    "mlp_hidden_act": "gelu",
    "ssm_state_size": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "conv_kernel": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
JAMBA = {"model_type": "jamba", "vocab_size": 65536, "num_experts": 16, "bos_token_id": 1, "eos_token_id": 2}
ZEPHYR = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_8B = _llama(4096, 14336, 32, 32)
LLAMA_3B = _llama(3072, 8192, 28, 24, tie_word_embeddings=True, **_llama3_rope(32.0))
# Of 32 layers: what is left of the attention, in percent.
ATTENTION = {"50": range(1, 32, 2), "25": range(3, 32, 4), "12.5": range(7, 32, 8), "0": range(0)}

PRESETS = {
    "mamba-130m": _mamba(768, 24),
    "mamba-790m": _mamba(1536, 48),
    "mamba-2.8b": _mamba(2560, 64),
    "mamba-7b-rw": _mamba(4096, 64, vocab=50432),
    "falcon-mamba-7b": {**_mamba(4096, 64, vocab=65024), **FALCON_MAMBA},
    "bamba-9b-v1": BAMBA,
    "bamba-9b-v2": BAMBA,
    "mamba2-hybrid-8b": NVIDIA_HYBRID,
    "jamba-v0.1": {**LLAMA_8B, **JAMBA},
    **{f"mamba1-in-llama-8b-att{left}": _in_llama(LLAMA_8B, kept, "mamba1") for left, kept in ATTENTION.items()},
    **{f"mamba2-in-llama-8b-att{left}": _in_llama(LLAMA_8B, kept, "mamba2") for left, kept in ATTENTION.items()},
    "mamba2-in-llama-3b-att50": _in_llama(LLAMA_3B, range(1, 28, 2), "mamba2"),
    "zephyr-7b": {**LLAMA_8B, **ZEPHYR},
    "llama-3-8b": LLAMA_8B,
    "llama-3.1-8b": {**LLAMA_8B, **_llama3_rope(8.0)},
    "llama-3.2-3b": LLAMA_3B,
}


def preset_config(name: str) -> LlambaConfig:
    """The configuration of a preset. Raises: ValueError for a name that is none, and for a model that is not run."""
    if name not in PRESETS:
        raise ValueError(f"preset: name must be one of {', '.join(PRESETS)}; got {name!r}")
    try:
        return config_of(PRESETS[name])
    except ValueError as error:
        raise ValueError(f"preset {name}: {str(error).removeprefix('load_model: ')}") from error
