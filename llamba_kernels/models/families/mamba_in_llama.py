"""MambaInLlama (arXiv 2408.15237): a Llama or Mistral folder beside whose config.json lies a mamba_config.json.

config.json alone describes the teacher, so that loading it as what its model_type says would give a model with random
attention in the converted layers. Mamba-2 mixers are those of the paper's second variant (our own); Mamba-1 mixers take
B, C and the step sizes from the layer's input and add dt_proj.bias twice.
"""

import math

from ..config import LlambaConfig
from . import llama
from .fields import llama_settings, refuse
from .layout import Layout

NAME = "mamba_in_llama"
STATE = 16  # of the Mamba-1 variant, which never stores it
NORM_EPS = 1e-5  # of the gated norm, likewise
FUSED_MIXER = (
    ".mamba.in_proj.weight",
    ".mamba.in_proj_z.weight",
    ".mamba.in_proj_x.weight",
    ".mamba.B_proj.weight",
    ".mamba.C_proj.weight",
    ".mamba.dt_proj_down.weight",
)
FUSED_ATTENTION = (
    ".mha.in_proj.weight",
    ".self_attn.q_proj.weight",
    ".self_attn.k_proj.weight",
    ".self_attn.v_proj.weight",
)


def matches(settings: dict) -> bool:
    return isinstance(settings.get("mamba_config"), dict)


def config(settings: dict) -> dict:
    mamba = settings["mamba_config"]
    if not llama.matches(settings):
        raise refuse("model_type", "be llama or mistral beside a mamba_config.json", settings.get("model_type"))
    fields = llama.config(settings)
    ssm = mamba.get("ssm_cfg")
    if not isinstance(ssm, dict):
        raise refuse("ssm_cfg", "be an object in mamba_config.json", ssm)
    if surplus := ssm.keys() - {"expand", "ngroups", "d_state"}:
        raise refuse("ssm_cfg", "hold only expand, ngroups and d_state in mamba_config.json", sorted(surplus))
    _agree(mamba, fields, d_model="hidden_size", n_layer="num_hidden_layers")
    _agree(mamba, fields, intermediate_size="intermediate_size", hidden_act="hidden_act", rms_norm_eps="rms_norm_eps")
    attention = mamba.get("attn_layers")
    number = fields["num_hidden_layers"]
    if not isinstance(attention, list) or not all(type(i) is int and 0 <= i < number for i in attention):
        raise refuse("attn_layers", f"be a list of layers below {number} in mamba_config.json", attention)
    expand = _size(ssm, "expand", 1, "ssm_cfg")
    d_inner = _size(mamba, "d_inner", expand * fields["hidden_size"])
    d_xb = _size(mamba, "d_xb", fields["hidden_size"] if fields["num_key_value_heads"] is None else None)
    second = bool(ssm.keys() & {"ngroups", "d_state"})
    mixer = _mamba2(ssm, d_inner, d_xb) if second else _mamba1(fields["hidden_size"], d_inner, d_xb)
    kind = "mamba2" if second else "mamba1"
    return {**fields, **mixer, "layers": ["attention" if i in attention else kind for i in range(number)]}


def _mamba2(ssm: dict, d_inner: int, d_xb: int) -> dict:
    """As many heads as groups, and heads as wide as the state, so that both are the attention's."""
    heads = _size(ssm, "ngroups", None, "ssm_cfg")
    state = _size(ssm, "d_state", None, "ssm_cfg")
    if heads * state != d_inner:
        raise refuse("d_inner", f"be ngroups * d_state = {heads * state} in mamba_config.json", d_inner)
    if d_xb % state:
        raise refuse("d_xb", f"be a multiple of d_state, {state}, in mamba_config.json", d_xb)
    return {
        "mamba_num_heads": heads,
        "mamba_head_dim": state,
        "mamba_d_state": state,
        "mamba_x_heads": d_xb // state,
        "mamba_B_heads": d_xb // state,
        "mamba_C_heads": heads,
        "mamba_norm_group_size": state,
        "mamba_norm_eps": NORM_EPS,
        "mamba_d_conv": 4,
    }


def _mamba1(hidden_size: int, d_inner: int, d_xb: int) -> dict:
    for name, size in (("d_inner", d_inner), ("d_xb", d_xb)):
        if size % STATE:
            raise refuse(name, f"be a multiple of the state's {STATE} columns in mamba_config.json", size)
    return {
        "mamba1_selection": "input",
        "mamba1_d_inner": d_inner,
        "mamba1_d_state": STATE,
        "mamba1_dt_rank": math.ceil(hidden_size / 16),
        "mamba1_x_heads": d_xb // STATE,
        "mamba1_B_heads": d_xb // STATE,
        "mamba1_C_heads": d_inner // STATE,
        "mamba1_dt_bias_count": 2,
        "mamba_d_conv": 4,
    }


def _agree(mamba: dict, fields: dict, **names: str) -> None:
    """What both files state must be the same: nobody could tell which of them the weights follow."""
    for theirs, ours in names.items():
        if mamba.get(theirs) not in (None, fields[ours]):
            raise refuse(theirs, f"be config.json's {fields[ours]!r} in mamba_config.json", mamba[theirs])


def _size(settings: dict, name: str, default: int | None, owner: str = "mamba_config.json") -> int:
    value = default if settings.get(name) is None else settings[name]
    if type(value) is not int or value <= 0:
        raise refuse(name, f"be a positive int in {owner}", value)
    return value


def layout(config) -> Layout:
    """fused: the names that the authors' inference code gives the projections when it joins them."""
    if not config.origin.get("fused"):
        return Layout()
    mixer = (FUSED_MIXER,) if "mamba1" in config.layers else ()
    return Layout(((".self_attn.o_proj.", ".mha.out_proj."),), (FUSED_ATTENTION, *mixer))


def inspect(names) -> dict:
    """What the stored names tell beyond the settings."""
    return {"fused": True} if any(".mha.in_proj." in name for name in names) else {}


def heads(config: LlambaConfig) -> dict:
    """As they are."""
    return {}


def settings(config: LlambaConfig) -> dict:
    """config.json and mamba_config.json of one of our hybrids."""
    window = {"sliding_window": config.sliding_window} if config.sliding_window else {}
    names = ("mistral", "MistralForCausalLM") if window else ("llama", "LlamaForCausalLM")
    ssm = {"expand": 1, "ngroups": config.mamba_num_heads, "d_state": config.mamba_d_state}
    mamba_config = {
        "d_model": config.hidden_size,
        "ssm_cfg": ssm,
        "rms_norm_eps": config.rms_norm_eps,
        "vocab_size": None,
        "d_inner": config.mamba_d_inner,
        "d_xb": config.mamba_x_heads * config.mamba_head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.hidden_act,
        "n_layer": config.num_hidden_layers,
        "attn_layers": [i for i, kind in enumerate(config.layers) if kind == "attention"],
    }
    return {
        **llama_settings(config, *names),
        **window,
        "head_dim": config.head_dim,
        "mamba_config": mamba_config,
    }
