"""The whole language model, token by token and layer by layer: attention or Mamba-2, MLP, norms, head."""

import math

import torch

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
    states = [0 for _ in layers]  # of each Mamba-2 layer: [heads, headdim, dstate]
    eps, logits = config["rms_norm_eps"], []
    for token in tokens:
        hidden = weights["model.embed_tokens.weight"][token]
        for i, layer in enumerate(layers):
            u = stored(_norm(hidden, layer["input_layernorm.weight"], eps))
            if config["layers"][i] == "mamba2":
                mixed, states[i] = mamba2_ref(u, _below(layer, "mamba."), config, past[i], states[i], stored)
            else:
                mixed = attention_ref(u, _below(layer, "self_attn."), config, past[i], stored)
            hidden = stored(hidden + mixed)
            u = stored(_norm(hidden, layer["post_attention_layernorm.weight"], eps))
            gate, up = (stored(_linear(u, layer, f"mlp.{name}_proj")) for name in ("gate", "up"))
            hidden = stored(hidden + stored(_linear(stored(_silu(gate) * up), layer, "mlp.down_proj")))
        logits.append(stored(head @ stored(_norm(hidden, weights["model.norm.weight"], eps))))
    return torch.stack(logits)


def attention_ref(u, layer, config, past, stored):
    """The newest token's output, [hidden], from its input u, [hidden]; (k, v) [kv_heads, head_dim] joins past."""
    size, heads = config["head_dim"], config["num_attention_heads"]
    q, k, v = (stored(_linear(u, layer, f"{name}_proj")).view(-1, size) for name in "qkv")
    cos, sin = _rotation(len(past), config, u.dtype)
    past.append((stored(_rotate(k, cos, sin)), v))
    q, y = stored(_rotate(q, cos, sin)), []
    for head in range(heads):
        shared = head // (heads // config["num_key_value_heads"])
        scores = torch.stack([k[shared] @ q[head] for k, _ in past]) / math.sqrt(size)
        weights = torch.exp(scores - scores.max())
        y.append(sum(weight * v[shared] for weight, (_, v) in zip(weights / weights.sum(), past, strict=True)))
    return stored(_linear(stored(torch.cat(y)), layer, "o_proj"))


def mamba2_ref(u, layer, config, past, state, stored):
    """The newest token's output, [hidden], and state; its raw x, B and C, [conv_dim], join past."""
    heads, headdim, dstate = (config[f"mamba_{name}"] for name in ("num_heads", "head_dim", "d_state"))
    shared = [config[f"mamba_{name}_heads"] for name in "xBC"]
    raw = stored(_linear(u, layer, "in_proj"))
    z, raw, dt = raw.split([heads * headdim, len(raw) - heads * (headdim + 1), heads])
    past.append(raw)
    taps = reversed(layer["conv1d.weight"][:, 0].T)  # the newest token's first; before the first token there is none
    conv = layer["conv1d.bias"] + sum(tap * earlier for tap, earlier in zip(taps, reversed(past), strict=False))
    x, B, C = split_heads(stored(_silu(conv)), heads, headdim, dstate, *shared)
    step = torch.logaddexp(dt + layer["dt_bias"], torch.zeros_like(dt))  # [heads], softplus
    decay = torch.exp(-torch.exp(layer["A_log"]) * step)  # [heads]
    state = decay[:, None, None] * state + step[:, None, None] * x[:, :, None] * B[:, None, :]
    y = (state * C[:, None, :]).sum(-1) + layer["D"][:, None] * x  # [heads, headdim]
    gated = (stored(y).flatten() * _silu(z)).view(-1, config["mamba_norm_group_size"])
    normed = torch.cat([_norm(group, 1, config["rms_norm_eps"]) for group in gated]) * layer["norm.weight"]
    return stored(_linear(stored(normed), layer, "out_proj")), state


def _rotation(position, config, dtype):
    """cos and sin of a token's angles, [head_dim / 2] each."""
    rope, half = config["rope_parameters"], config["head_dim"] // 2
    angles = [position * _frequency(rope["rope_theta"] ** (-i / half), rope) for i in range(half)]
    return [torch.tensor([function(angle) for angle in angles], dtype=dtype) for function in (math.cos, math.sin)]


def _frequency(frequency, rope):
    """Radians per token of one pair of channels after the scaling that lengthens the context."""
    if rope["rope_type"] == "default":
        return frequency
    if rope["rope_type"] == "linear":
        return frequency / rope["factor"]
    assert rope["rope_type"] == "llama3", rope
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)  # over the context of pretraining
    fast = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
    fast = min(max(fast, 0), 1)  # 1: turns often, kept; 0: turns seldom, slowed by the factor
    return fast * frequency + (1 - fast) * frequency / rope["factor"]


def _rotate(heads, cos, sin):
    """[heads, head_dim]: channel i turns with channel i + head_dim / 2."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _linear(u, layer, name):
    return layer[f"{name}.weight"] @ u + layer.get(f"{name}.bias", 0)


def _norm(v, weight, eps):
    return v / torch.sqrt((v * v).mean() + eps) * weight


def _silu(v):
    return v * torch.sigmoid(v)


def _below(weights, prefix):
    """The parameters of one module, by their names in it."""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
