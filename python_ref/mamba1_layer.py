"""A Mamba-1 layer, token by token: Mamba's, Falcon-Mamba's, Jamba's, MambaInLlama's attention-initialised one."""

import torch

from .layer import convolve, linear, norm, silu, softplus


def mamba1_ref(u, layer, config, past, state, stored):
    """The newest token's output, [hidden], and state, [d_inner, dstate]; its raw x, repeated, joins past."""
    inner, dstate = config["mamba1_d_inner"], config["mamba1_d_state"]
    B_heads, C_heads = config["mamba1_B_heads"], config["mamba1_C_heads"]
    if config["mamba1_selection"] == "input":
        raw, z = (stored(linear(u, layer, f"in_proj_{name}")) for name in "xz")
        low, B, C = (stored(linear(u, layer, name)) for name in ("dt_proj_down", "B_proj", "C_proj"))
        raw = torch.cat([raw[dstate * head : dstate * (head + 1)] for head in _shared(len(raw), inner, dstate)])
        past.append(raw)
        x = stored(convolve(layer, past))
    else:
        raw, z = stored(linear(u, layer, "in_proj")).split(inner)
        past.append(raw)
        x = stored(convolve(layer, past))
        selected = stored(linear(x, layer, "x_proj"))
        low, B, C = selected.split([config["mamba1_dt_rank"], B_heads * dstate, C_heads * dstate])
        low, B, C = (
            _inner_norm(v, name, layer, config, stored) for name, v in zip(("dt", "B", "C"), (low, B, C), strict=True)
        )
    dt = stored(layer["dt_proj.weight"] @ low)
    step = softplus(dt + config["mamba1_dt_bias_count"] * layer["dt_proj.bias"])  # [d_inner]
    decay = torch.exp(-torch.exp(layer["A_log"]) * step[:, None])  # [d_inner, dstate]
    B, C = (v.view(heads, dstate).repeat_interleave(inner // heads, 0) for v, heads in ((B, B_heads), (C, C_heads)))
    state = decay * state + (step * x)[:, None] * B
    y = stored(((state * C).sum(-1) + layer["D"] * x) * silu(z))
    return stored(linear(y, layer, "out_proj")), state


def _shared(raw, inner, size):
    """Of each of the heads of `size` channels, which head of the raw x it reads."""
    heads = inner // size
    return [head // (heads // (raw // size)) for head in range(heads)]


def _inner_norm(v, name, layer, config, stored):
    kind, eps = config["mamba1_inner_norm"], config["mamba1_inner_norm_eps"]
    if kind is None:
        return v
    return stored(norm(v, layer[f"{name}_layernorm.weight"] if kind == "weighted" else 1, eps))
