"""MambaInLlama's hybrids of both variants, token by token, with the names and settings of the published checkpoints."""

import torch

from .attention_layer import attention_ref
from .hybrid import mamba2_ref
from .layer import convolve, linear, norm, silu, softplus

STATE = 16  # columns per channel of the Mamba-1 variant, and channels of its groups
NORM_EPS = 1e-5  # of the Mamba-2 variant's gated norm


def mamba_in_llama_ref(tokens, parameters, config, mamba_config, compute_dtype=torch.float64, stored_dtype=None):
    """Logits [length, vocab] of one sequence, row t from tokens 0 to t; arguments as for `hybrid_ref`.

    config: as config.json has it, with rope_parameters; mamba_config: mamba_config.json.
    """

    def stored(value):
        return value if stored_dtype is None else value.to(stored_dtype).to(compute_dtype)

    weights = {name: tensor.to(compute_dtype) for name, tensor in parameters.items()}
    number, eps = config["num_hidden_layers"], config["rms_norm_eps"]
    mixer2 = _second_variant(mamba_config)
    past, states, logits = [[] for _ in range(number)], [0] * number, []
    for token in tokens:
        hidden = weights["model.embed_tokens.weight"][token]
        for i in range(number):
            layer = _below(weights, f"model.layers.{i}.")
            u, mixer = stored(norm(hidden, layer["input_layernorm.weight"], eps)), _below(layer, "mamba.")
            if i in mamba_config["attn_layers"]:
                mixed = attention_ref(u, _below(layer, "self_attn."), config, past[i], stored)
            elif mixer2 is not None:
                mixed, states[i] = mamba2_ref(u, mixer, mixer2, past[i], states[i], stored)
            else:
                mixed, states[i] = grouped_mamba1_ref(u, mixer, past[i], states[i], stored)
            hidden = stored(hidden + mixed)
            u = stored(norm(hidden, layer["post_attention_layernorm.weight"], eps))
            gate, up = (stored(linear(u, layer, f"mlp.{name}_proj")) for name in ("gate", "up"))
            hidden = stored(hidden + stored(layer["mlp.down_proj.weight"] @ stored(silu(gate) * up)))
        logits.append(stored(weights["lm_head.weight"] @ stored(norm(hidden, weights["model.norm.weight"], eps))))
    return torch.stack(logits)


def grouped_mamba1_ref(u, layer, past, state, stored):
    """The newest token's output, [d_model], and state, [groups, 16 channels, 16 columns]; repeated x joins past.

    dt, B and C come from the layer's input, x alone is convolved, after its groups have been repeated.
    """
    x, z, B, C = (stored(linear(u, layer, name)) for name in ("in_proj_x", "in_proj_z", "B_proj", "C_proj"))
    repeats = len(z) // len(x)
    x, B = (v.view(-1, STATE).repeat_interleave(repeats, dim=0) for v in (x, B))  # [groups, 16]
    past.append(x.flatten())
    x = stored(convolve(layer, past))
    # The projection has a bias, and the scan adds the same bias again.
    dt = stored(layer["dt_proj.weight"] @ stored(layer["dt_proj_down.weight"] @ u)) + 2 * layer["dt_proj.bias"]
    step = softplus(dt).view(-1, STATE, 1)
    A = -torch.exp(layer["A_log"]).view(-1, STATE, STATE)
    state = torch.exp(step * A) * state + step * x.view(-1, STATE, 1) * B[:, None, :]
    y = (state * C.view(-1, 1, STATE)).sum(-1).flatten() + layer["D"] * x
    return stored(layer["out_proj.weight"] @ stored(y * silu(z))), state


def _second_variant(mamba_config):
    """The shapes of the Mamba-2 variant's mixers, as `mamba2_ref` calls them; None: the Mamba-1 variant."""
    ssm = mamba_config["ssm_cfg"]
    if "ngroups" not in ssm:
        return None
    size = ssm["d_state"]  # a head has as many channels as its state has columns
    return {
        "mamba_num_heads": ssm["ngroups"],
        "mamba_head_dim": size,
        "mamba_d_state": size,
        "mamba_x_heads": mamba_config["d_xb"] // size,
        "mamba_B_heads": mamba_config["d_xb"] // size,
        "mamba_C_heads": ssm["ngroups"],
        "mamba_norm_group_size": size,
        "rms_norm_eps": NORM_EPS,
    }


def _below(weights, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
