"""NVIDIA's hybrid (Nemotron-H): a layer is Mamba-2, or attention without positions, or an MLP without gate.

Step sizes are clipped by time_step_limit alone (as we understand NVIDIA's own code), so that nothing is; transformers
5.23 also raises them to time_step_min, over whole sequences but not when it decodes.
"""

from transformers import NemotronHConfig

from .fields import SIZES, copied, refuse, require, require_no_limit, require_silu, stock_mamba2
from .layout import BACKBONE, Layout

NAME = "nemotron_h"
ALIASES = (("backbone.", "model."),)
KINDS = {"linear_attention": "mamba2", "mamba": "mamba2", "full_attention": "attention", "attention": "attention"}
KINDS["mlp"] = "none"


def matches(settings: dict) -> bool:
    return settings.get("model_type") == NAME


def config(settings: dict) -> dict:
    theirs = NemotronHConfig.from_dict(settings)
    require_silu(theirs, "mamba_hidden_act")
    require_no_limit(theirs)
    require(theirs, "attention_bias", False, "as its attention has none")
    require(theirs, "sliding_window", None, "as its attention sees all")
    require(theirs, "num_nextn_predict_layers", 0, "as its extra prediction layers are not run")
    kinds = theirs.layers_block_type
    if not all(kind in KINDS for kind in kinds):
        others = sorted(set(kinds) - KINDS.keys())
        raise refuse("layers_block_type", "hold only M, * and -, as mixtures of experts are not run", others)
    sizes = (theirs.mamba_num_heads, theirs.mamba_head_dim, theirs.ssm_state_size, theirs.n_groups, theirs.conv_kernel)
    return {
        **copied(theirs, *SIZES, "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
        **copied(theirs, "intermediate_size", "mlp_bias"),
        **stock_mamba2(*sizes, theirs.use_conv_bias, theirs.use_bias),
        "layers": [KINDS[kind] for kind in kinds],
        "mlp_layers": [kind == "mlp" for kind in kinds],
        "mlp_gated": False,
        "hidden_act": theirs.mlp_hidden_act,
        "rms_norm_eps": theirs.layer_norm_epsilon,
        "rotary_dim": 0,
    }


def layout(config) -> Layout:
    one_each = ((".post_attention_layernorm.", ".norm."), (".self_attn.", ".mixer."), (".mlp.", ".mixer."))
    return Layout((*BACKBONE, *one_each))
