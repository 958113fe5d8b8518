"""state-spaces' own format (mamba-2.8b, mamba2-2.7b, ...): a config.json of mamba_ssm's names and no model_type."""

import math

from .fields import NO_LIMIT, refuse, stock_mamba1, stock_mamba2
from .layout import BACKBONE, Layout

NAME = "mamba_ssm"
# mamba_ssm's defaults, which a config.json leaves out.
DEFAULTS = {
    "rms_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
    "d_intermediate": 0,
    "attn_layer_idx": [],
    "bidirectional": False,
}
MIXER_DEFAULTS = {"d_conv": 4, "expand": 2, "bias": False, "conv_bias": True}
# Initial values, and what changes speed only.
IGNORED = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init", "use_fast_path"}
IGNORED |= {"chunk_size", "use_mem_eff_path", "sequence_parallel"}
KNOWN = {
    "Mamba1": {"d_state", "dt_rank", *MIXER_DEFAULTS},
    "Mamba2": {"d_state", "headdim", "ngroups", *MIXER_DEFAULTS},
}
ONLY = {"rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False, "d_ssm": None}


def matches(settings: dict) -> bool:
    return "model_type" not in settings and {"d_model", "n_layer", "vocab_size"} <= settings.keys()


def config(settings: dict) -> dict:
    given = {**DEFAULTS, **settings}
    for field in ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple"):
        if type(given[field]) is not int or given[field] <= 0:
            raise refuse(field, "be a positive int", given[field])
    for field, why in (("rms_norm", "as LayerNorm is not run"), ("bidirectional", "as decoding goes forwards")):
        if given[field] is not DEFAULTS[field]:
            raise refuse(field, f"be {str(DEFAULTS[field]).lower()}, {why}", given[field])
    if given["attn_layer_idx"]:
        why = "be empty, as attention with a convolution and a joined projection is not run"
        raise refuse("attn_layer_idx", why, given["attn_layer_idx"])
    hidden, layers, inner = given["d_model"], given["n_layer"], given["d_intermediate"]
    ssm = dict(given.get("ssm_cfg") or {})
    kind = ssm.pop("layer", "Mamba1")
    if kind not in KNOWN:
        raise refuse("layer", "be Mamba1 or Mamba2 in ssm_cfg", kind)
    mixer = _mixer(kind, ssm, hidden)
    multiple = given["pad_vocab_size_multiple"]
    return {
        "vocab_size": math.ceil(given["vocab_size"] / multiple) * multiple,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "tie_word_embeddings": given["tie_embeddings"],
        "rms_norm_eps": 1e-5,
        "layers": [kind.lower()] * layers,
        "mlp_layers": [inner > 0] * layers,
        **({"intermediate_size": math.ceil(inner / 128) * 128} if inner > 0 else {}),
        "num_attention_heads": 1,
        "head_dim": 2,
        "max_position_embeddings": 2**31 - 1,
        **mixer,
        **{name: settings.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    }


def _mixer(kind: str, ssm: dict, hidden: int) -> dict:
    for field, value in ONLY.items():
        if (found := ssm.pop(field, value)) != value:
            raise refuse(field, f"be {value!r} in ssm_cfg, which is what is run", found)
    limit = ssm.pop("dt_limit", NO_LIMIT)
    if limit not in (NO_LIMIT, list(NO_LIMIT)):
        raise refuse("dt_limit", "be [0.0, Infinity] in ssm_cfg, as step sizes are not clipped", limit)
    if surplus := ssm.keys() - KNOWN[kind] - IGNORED:
        raise refuse("ssm_cfg", f"hold what {kind} has", sorted(surplus))
    given = {**MIXER_DEFAULTS, **ssm}
    if not isinstance(given["expand"], (int, float)):
        raise refuse("expand", "be a number in ssm_cfg", given["expand"])
    inner, flags = int(given["expand"] * hidden), (given["d_conv"], given["conv_bias"], given["bias"])
    if kind == "Mamba1":
        rank = given.get("dt_rank", "auto")
        return stock_mamba1(inner, given.get("d_state", 16), math.ceil(hidden / 16) if rank == "auto" else rank, *flags)
    head_dim = given.get("headdim", 64)
    if inner % head_dim:
        raise refuse("headdim", f"divide expand * d_model = {inner} in ssm_cfg", head_dim)
    sizes = (inner // head_dim, head_dim, given.get("d_state", 128), given.get("ngroups", 1))
    return stock_mamba2(*sizes, *flags)


def layout(config) -> Layout:
    """Both halves of the MLP are one tensor, the gate's rows second."""
    own = (("backbone.embeddings.", "backbone.embedding."), (".post_attention_layernorm.", ".norm2."))
    joined = (".mlp.fc1.", ".mlp.up_proj.", ".mlp.gate_proj.")
    return Layout((*BACKBONE, *own, (".mlp.down_proj.", ".mlp.fc2.")), (joined,))
