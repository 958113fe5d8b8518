"""The whole language model, token by token and layer by layer: attention, Mamba-1 or Mamba-2, MLP, norms, head."""

import torch

from .attention_layer import attention_ref
from .layer import convolve, linear, norm, silu, softplus
from .mamba1_layer import mamba1_ref
from .mamba2_verify import split_heads


def hybrid_ref(tokens, parameters, config, compute_dtype=torch.float64, stored_dtype=None):
    """Logits [length, vocab] of one sequence, row t from tokens 0 to t, in compute_dtype.

    tokens: ids. parameters: name -> tensor and config: name -> number, as a checkpoint and its config.json have them.
    stored_dtype: what a model of that dtype would keep between two operations (a projection, a norm, a sum) is rounded
    to it; None: nothing is rounded.
    """

    def stored(value):
        return value if stored_dtype is None else value.to(stored_dtype).to(compute_dtype)

    weights = {name: tensor.to(compute_dtype) for name, tensor in parameters.items()}
    layers = [_below(weights, f"model.layers.{i}.") for i in range(config["num_hidden_layers"])]
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    past = [[] for _ in layers]  # of each layer, what it keeps of every earlier token
    states = [0 for _ in layers]  # of each Mamba layer, its recurrent state
    eps, logits = config["rms_norm_eps"], []
    mlps = config.get("mlp_layers") or [True] * len(layers)
    factor, divisor = config.get("residual_multiplier", 1), config.get("logits_divisor", 1)
    for token in tokens:
        hidden = stored(weights["model.embed_tokens.weight"][token] * config.get("embedding_multiplier", 1))
        for i, (kind, layer) in enumerate(zip(config["layers"], layers, strict=True)):
            if kind != "none":
                u = stored(norm(hidden, layer["input_layernorm.weight"], eps))
                if kind == "attention":
                    mixed = attention_ref(u, _below(layer, "self_attn."), config, past[i], stored)
                else:
                    mixer = mamba1_ref if kind == "mamba1" else mamba2_ref
                    mixed, states[i] = mixer(u, _below(layer, "mamba."), config, past[i], states[i], stored)
                hidden = stored(hidden + stored(factor * mixed))
            if mlps[i]:
                u = stored(norm(hidden, layer["post_attention_layernorm.weight"], eps))
                hidden = stored(hidden + stored(factor * mlp_ref(u, _below(layer, "mlp."), config, stored)))
        read = stored(head @ stored(norm(hidden, weights["model.norm.weight"], eps)))
        logits.append(stored(read / divisor))
    return torch.stack(logits)


def mlp_ref(u, layer, config, stored):
    act = {"silu": silu, "relu2": lambda v: v.clamp(min=0) ** 2}[config["hidden_act"]]
    up = stored(linear(u, layer, "up_proj"))
    inner = act(stored(linear(u, layer, "gate_proj"))) * up if config.get("mlp_gated", True) else act(up)
    return stored(linear(stored(inner), layer, "down_proj"))


def mamba2_ref(u, layer, config, past, state, stored):
    """The newest token's output, [hidden], and state; its raw x, B and C, [conv_dim], join past."""
    heads, headdim, dstate = (config[f"mamba_{name}"] for name in ("num_heads", "head_dim", "d_state"))
    shared = [config[f"mamba_{name}_heads"] for name in "xBC"]
    raw = stored(linear(u, layer, "in_proj"))
    z, raw, dt = raw.split([heads * headdim, len(raw) - heads * (headdim + 1), heads])
    past.append(raw)
    x, B, C = split_heads(stored(convolve(layer, past)), heads, headdim, dstate, *shared)
    step = softplus(dt + layer["dt_bias"])  # [heads]
    decay = torch.exp(-torch.exp(layer["A_log"]) * step)  # [heads]
    state = decay[:, None, None] * state + step[:, None, None] * x[:, :, None] * B[:, None, :]
    y = (state * C[:, None, :]).sum(-1) + layer["D"][:, None] * x  # [heads, headdim]
    gated = (stored(y).flatten() * silu(z)).view(-1, config["mamba_norm_group_size"])
    normed = (
        torch.cat([norm(group, 1, config.get("mamba_norm_eps") or config["rms_norm_eps"]) for group in gated])
        * layer["norm.weight"]
    )
    return stored(linear(stored(normed), layer, "out_proj")), state


def _below(weights, prefix):
    """The parameters of one module, by their names in it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
