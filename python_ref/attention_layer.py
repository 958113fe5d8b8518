"""An attention layer, token by token: grouped heads, RoPE of all or of the first channels, a sliding window."""

import math

import torch

from .layer import linear


def attention_ref(u, layer, config, past, stored):
    """The newest token's output, [hidden], from its input u, [hidden]; (k, v) [kv_heads, head_dim] joins past."""
    size, heads = config["head_dim"], config["num_attention_heads"]
    scale = config.get("attention_scale") or 1 / math.sqrt(size)
    q, k, v = (stored(linear(u, layer, f"{name}_proj")).view(-1, size) for name in "qkv")
    cos, sin = _rotation(len(past), config, u.dtype)
    past.append((stored(_rotate(k, cos, sin)), v))
    q, y, seen = stored(_rotate(q, cos, sin)), [], past[-(config.get("sliding_window") or 0) :]
    for head in range(heads):
        shared = head // (heads // config["num_key_value_heads"])
        scores = scale * torch.stack([k[shared] @ q[head] for k, _ in seen])
        weights = torch.exp(scores - scores.max())
        y.append(sum(weight * v[shared] for weight, (_, v) in zip(weights / weights.sum(), seen, strict=True)))
    return stored(linear(stored(torch.cat(y)), layer, "o_proj"))


def _rotation(position, config, dtype):
    """cos and sin of a token's angles, [rotated channels / 2] each."""
    rope, half = config["rope_parameters"], config.get("rotary_dim", config["head_dim"]) // 2
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
    """[heads, head_dim]: of the channels that turn, the first ones, channel i turns with channel i + half of them."""
    half = len(cos)
    first, second, rest = heads.split([half, half, heads.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], dim=-1)
