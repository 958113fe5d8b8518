"""What several families' settings have in common: how they are read, and how what is not run is refused."""

import math

import torch
from transformers import PreTrainedConfig

from ..config import LlambaConfig

NO_LIMIT = (0.0, math.inf)
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "initializer_range", "tie_word_embeddings", *TOKENS)
ATTENTION = ("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")


def refuse(field: str, rule: str, value) -> ValueError:
    return ValueError(f"load_model: {field} must {rule}; got {value!r}")


def require(config: PreTrainedConfig, field: str, value, why: str) -> None:
    """The one value of a field that is run."""
    found = getattr(config, field)
    if found != value:
        raise refuse(field, f"be {value!r}, {why}", found)


def require_silu(config: PreTrainedConfig, field: str = "hidden_act") -> None:
    found = getattr(config, field)
    if found not in ("silu", "swish"):
        raise refuse(field, "be silu, the activation of the convolution and of the gate that is run", found)


def require_no_limit(config: PreTrainedConfig, field: str = "time_step_limit") -> None:
    limit = getattr(config, field)
    if limit is not None and tuple(limit) != NO_LIMIT:
        raise refuse(field, "be [0.0, Infinity], as step sizes are not clipped", limit)


def copied(config: PreTrainedConfig, *names: str) -> dict:
    return {name: getattr(config, name) for name in names}


def without_attention(config: PreTrainedConfig, kind: str) -> dict:
    """A stack of mixers, each with its norm, and nothing else."""
    layers = config.num_hidden_layers
    return {
        **copied(config, *SIZES),
        "rms_norm_eps": config.layer_norm_epsilon,
        "layers": [kind] * layers,
        "mlp_layers": [False] * layers,
        "num_attention_heads": 1,
        "head_dim": 2,  # of no layer
        "max_position_embeddings": 2**31 - 1,
    }


def stock_mamba1(d_inner: int, d_state: int, dt_rank: int, d_conv: int, conv_bias: bool, proj_bias: bool) -> dict:
    return {
        "mamba1_d_inner": d_inner,
        "mamba1_d_state": d_state,
        "mamba1_dt_rank": dt_rank,
        "mamba_d_conv": d_conv,
        "mamba_conv_bias": conv_bias,
        "mamba_proj_bias": proj_bias,
    }


def stock_mamba2(
    num_heads: int, head_dim: int, d_state: int, groups: int, d_conv: int, conv_bias: bool, proj_bias: bool
) -> dict:
    """x of every head its own, B and C shared within a group, which is also what the gated norm's RMS is over."""
    if groups <= 0 or num_heads % groups:
        raise refuse("n_groups", f"divide the number of heads, {num_heads}", groups)
    return {
        "mamba_num_heads": num_heads,
        "mamba_head_dim": head_dim,
        "mamba_d_state": d_state,
        "mamba_x_heads": num_heads,
        "mamba_B_heads": groups,
        "mamba_C_heads": groups,
        "mamba_norm_group_size": num_heads * head_dim // groups,
        "mamba_d_conv": d_conv,
        "mamba_conv_bias": conv_bias,
        "mamba_proj_bias": proj_bias,
    }


def stock_heads(config: LlambaConfig) -> dict:
    """The heads of x, B and C with which a hybrid's mixers are stock ones, as `stock_mamba2` reads them."""
    groups = config.mamba_d_inner // config.mamba_norm_group_size
    for field in ("mamba_B_heads", "mamba_C_heads"):
        if groups % getattr(config, field):
            rule = f"divide the {groups} groups of the gated norm, which are the groups of B and C elsewhere"
            raise ValueError(f"export_model: {field} must {rule}; got {getattr(config, field)}")
    return {"mamba_x_heads": config.mamba_num_heads, "mamba_B_heads": groups, "mamba_C_heads": groups}


def llama_settings(config: LlambaConfig, model_type: str, architecture: str) -> dict:
    """What most config.jsons have in common, RoPE as it was before transformers 5, which all engines read."""
    rope = dict(config.rope_parameters)
    theta = rope.pop("rope_theta")
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **copied(config, *SIZES, *ATTENTION, "intermediate_size", "hidden_act", "attention_bias", "mlp_bias"),
        "rope_theta": theta,
        "rope_scaling": rope if rope["rope_type"] != "default" else None,
        "torch_dtype": str(config.dtype or torch.float32).removeprefix("torch."),
    }


def stock_mamba2_settings(config: LlambaConfig) -> dict:
    """A stock mixer as Bamba and Granite-4 write it."""
    return {
        "mamba_n_heads": config.mamba_num_heads,
        "mamba_d_head": config.mamba_head_dim,
        "mamba_n_groups": config.mamba_B_heads,
        "mamba_d_state": config.mamba_d_state,
        "mamba_d_conv": config.mamba_d_conv,
        "mamba_expand": max(1, config.mamba_d_inner // config.hidden_size),
        "mamba_chunk_size": 256,
        "mamba_conv_bias": config.mamba_conv_bias,
        "mamba_proj_bias": config.mamba_proj_bias,
    }
