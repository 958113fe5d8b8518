"""state-spaces' Mamba and Mamba-2 models, token by token, with their own names of parameters and settings."""

import torch

from .hybrid import mamba2_ref
from .layer import convolve, linear, norm, silu, softplus

EPS = 1e-5  # of every norm


def mamba_ssm_ref(tokens, parameters, config, compute_dtype=torch.float64, stored_dtype=None):
    """Logits [length, padded vocab] of one sequence, row t from tokens 0 to t; arguments as for `hybrid_ref`.

    residual_in_fp32 holds: what is summed up from layer to layer is not rounded to stored_dtype.
    """

    def stored(value):
        return value if stored_dtype is None else value.to(stored_dtype).to(compute_dtype)

    weights = {name: tensor.to(compute_dtype) for name, tensor in parameters.items()}
    ssm = config.get("ssm_cfg", {})
    second = ssm.get("layer", "Mamba1") == "Mamba2"
    embedding = weights["backbone.embedding.weight"]
    head = weights.get("lm_head.weight", embedding)
    past, states = ([[] for _ in range(config["n_layer"])], [0] * config["n_layer"])
    logits = []
    for token in tokens:
        residual = embedding[token]
        for i in range(config["n_layer"]):
            layer = _below(weights, f"backbone.layers.{i}.")
            u, mixer = stored(norm(residual, layer["norm.weight"], EPS)), _below(layer, "mixer.")
            if second:
                mixed, states[i] = mamba2_ref(u, mixer, _stock(config, mixer), past[i], states[i], stored)
            else:
                mixed, states[i] = mamba1_ref(u, mixer, past[i], states[i], stored)
            residual = residual + mixed
        logits.append(stored(head @ stored(norm(residual, weights["backbone.norm_f.weight"], EPS))))
    return torch.stack(logits)


def mamba1_ref(u, layer, past, state, stored):
    """The newest token's output, [d_model], and state, [d_inner, d_state]; its raw x, [d_inner], joins past."""
    x, z = stored(linear(u, layer, "in_proj")).chunk(2)
    past.append(x)
    x = stored(convolve(layer, past))
    rank, columns = layer["dt_proj.weight"].shape[1], layer["A_log"].shape[1]
    low, B, C = stored(linear(x, layer, "x_proj")).split([rank, columns, columns])
    step = softplus(stored(layer["dt_proj.weight"] @ low) + layer["dt_proj.bias"])  # [d_inner]
    state = torch.exp(-step[:, None] * torch.exp(layer["A_log"])) * state + (step * x)[:, None] * B
    y = stored((state @ C + layer["D"] * x) * silu(z))
    return stored(linear(y, layer, "out_proj")), state


def _stock(config, mixer):
    """The shapes of a stock Mamba-2 mixer, as `mamba2_ref` calls them."""
    ssm, heads = config["ssm_cfg"], len(mixer["dt_bias"])
    inner, groups = len(mixer["norm.weight"]), ssm.get("ngroups", 1)
    return {
        "mamba_num_heads": heads,
        "mamba_head_dim": inner // heads,
        "mamba_d_state": ssm.get("d_state", 128),
        "mamba_x_heads": heads,
        "mamba_B_heads": groups,
        "mamba_C_heads": groups,
        "mamba_norm_group_size": inner // groups,
        "rms_norm_eps": EPS,
    }


def _below(weights, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
