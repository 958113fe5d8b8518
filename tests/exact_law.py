"""The exact law of a tiny hybrid's sampled tokens, from a forward pass in fp64 that shares no code with the package."""

import itertools
import math

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from python_ref.ssd import ssd_ref


def warped(logits, sampling):
    """Temperature, top-k and top-p by transformers, in double: its float sums may put the border elsewhere."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits.double())
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1.0:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores


def joint_law(model, prompt, sampling, skip, count):
    """Of tokens skip + 1 to skip + count after the prompt, fp64, (vocab ** count)."""
    vocab = model.config.vocab_size
    joint = torch.ones(1, dtype=torch.float64)
    for depth in range(skip + count):
        prefixes = list(itertools.product(range(vocab), repeat=depth))
        ids = torch.tensor([[*prompt, *prefix] for prefix in prefixes])
        law = warped(reference_logits(model, ids), sampling).softmax(-1)
        joint = (joint.view(-1, 1) * law).flatten()
    return joint.view(vocab**skip, vocab**count).sum(0)


def p_value(counts, law):
    """Of the hypothesis that the counts come from the law: Pearson's chi-square, cells that expect under 5 pooled."""
    expected = law * counts.sum()
    if counts[law == 0].any():
        return 0.0  # what cannot happen did
    rare = expected < 5
    if rare.any():
        counts = torch.cat([counts[~rare].double(), counts[rare].sum().double().view(1)])
        expected = torch.cat([expected[~rare], expected[rare].sum().view(1)])
    occurs = expected > 0
    counts, expected = counts[occurs].double(), expected[occurs]
    chi2 = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2, dtype=torch.float64), chi2 / 2).item()


def reference_logits(model, ids):
    """(rows, vocab) logits after the last token of each row of ids, (rows, length); default RoPE, no biases."""
    config, parameters = model.config, {name: value.double() for name, value in model.state_dict().items()}
    hidden = parameters["model.embed_tokens.weight"][ids]
    for i, kind in enumerate(config.layers):
        layer = {
            name.removeprefix(f"model.layers.{i}."): value
            for name, value in parameters.items()
            if name.startswith(f"model.layers.{i}.")
        }
        mix = _mamba2 if kind == "mamba2" else _attention
        hidden = hidden + mix(config, layer, _rms(hidden, config) * layer["input_layernorm.weight"])
        u = _rms(hidden, config) * layer["post_attention_layernorm.weight"]
        gate, up = u @ layer["mlp.gate_proj.weight"].T, u @ layer["mlp.up_proj.weight"].T
        hidden = hidden + (_silu(gate) * up) @ layer["mlp.down_proj.weight"].T
    return (_rms(hidden[:, -1], config) * parameters["model.norm.weight"]) @ parameters["lm_head.weight"].T


def _attention(config, layer, u):
    q, k, v = (
        (u @ layer[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        for name in "qkv"
    )  # [rows, heads, length, head_dim]
    length, half = u.shape[1], config.head_dim // 2
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones((), dtype=torch.float64), torch.arange(length)[:, None] * frequencies)

    def rotate(heads):
        turned = torch.complex(heads[..., :half], heads[..., half:]) * turn
        return torch.cat([turned.real, turned.imag], -1)

    groups = q.shape[1] // k.shape[1]
    q, k, v = rotate(q), rotate(k).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) / math.sqrt(config.head_dim)).masked_fill(future, -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2) @ layer["self_attn.o_proj.weight"].T


def _mamba2(config, layer, u):
    sizes = [config.mamba_d_inner, config.mamba_conv_dim, config.mamba_num_heads]
    z, xBC, dt = (u @ layer["mamba.in_proj.weight"].T).split(sizes, -1)
    width, length = config.mamba_d_conv, u.shape[1]
    padded = torch.cat([torch.zeros_like(xBC[:, :1]).repeat(1, width - 1, 1), xBC], 1)
    taps = layer["mamba.conv1d.weight"][:, 0]  # [conv_dim, width]
    conv = sum(padded[:, k : k + length] * taps[:, k] for k in range(width)) + layer["mamba.conv1d.bias"]
    parts = [config.mamba_x_heads * config.mamba_head_dim]
    parts += [config.mamba_B_heads * config.mamba_d_state, config.mamba_C_heads * config.mamba_d_state]
    x, B, C = _silu(conv).split(parts, -1)
    x = x.unflatten(-1, (-1, config.mamba_head_dim))
    B, C = (part.unflatten(-1, (-1, config.mamba_d_state)) for part in (B, C))
    step = torch.log1p(torch.exp(dt + layer["mamba.dt_bias"]))
    y, _ = ssd_ref(x, step, -layer["mamba.A_log"].exp(), B, C, layer["mamba.D"])
    gated = (y.flatten(-2) * _silu(z)).unflatten(-1, (-1, config.mamba_norm_group_size))
    return (_rms(gated, config).flatten(-2) * layer["mamba.norm.weight"]) @ layer["mamba.out_proj.weight"].T


def _rms(x, config):
    return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()


def _silu(x):
    return x / (1 + torch.exp(-x))
