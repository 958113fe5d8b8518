"""The slow reference of the whole model against second formulations: transformers' Llama and Mamba-2, a matrix form."""

import pytest
import torch
from llamas import LLAMAS, SIZES, randomize
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Mamba2Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from python_ref.hybrid import attention_ref, hybrid_ref, mamba2_ref
from python_ref.mamba2_verify import mamba2_sequence_ref

LENGTH = 37  # beyond the 16 positions that llama3's scaling counts as the original context
PLAIN = {name: change for name, change in LLAMAS.items() if name != "yarn rope scaling"}


def exact(value):
    return value


@pytest.mark.parametrize("change", PLAIN.values(), ids=PLAIN.keys())
def test_equals_transformers_llama(change, monkeypatch):
    """Its norms and angles ask for fp32 whatever the model's dtype is; here that word means fp64, too."""
    llama = randomize(LlamaForCausalLM(LlamaConfig(**{**SIZES, "rms_norm_eps": 1e-3, **change}))).double()
    monkeypatch.setattr(torch, "float", torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    llama.model.rotary_emb = LlamaRotaryEmbedding(llama.config)
    tokens = torch.randint(SIZES["vocab_size"], (LENGTH,))
    config = {**llama.config.to_dict(), "layers": ["attention"] * 3}
    with torch.no_grad():
        expected = llama(tokens[None]).logits[0]
        logits = hybrid_ref(tokens.tolist(), dict(llama.named_parameters()), config)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_attention_equals_masked_matrices():
    """All of it in fp64: softmax(q k^T + mask) v by torch, angles as complex numbers."""
    config = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000.0}
    layer = {
        f"{name}_proj.weight": torch.randn(rows, 36).double() for name, rows in zip("qkv", (60, 20, 20), strict=True)
    }
    layer["o_proj.weight"] = torch.randn(36, 60).double()
    u = torch.randn(LENGTH, 36).double()
    past = []
    y = torch.stack([attention_ref(token, layer, config, past, exact) for token in u])

    q, k, v = (F.linear(u, layer[f"{name}_proj.weight"]).unflatten(-1, (-1, 10)).transpose(0, 1) for name in "qkv")
    angles = torch.outer(torch.arange(LENGTH).double(), 1000.0 ** (-torch.arange(5).double() / 5))
    turn = torch.polar(torch.ones_like(angles), angles)  # [length, head_dim / 2]
    q, k = (torch.complex(*heads.chunk(2, dim=-1)) * turn for heads in (q, k))
    q, k = (torch.cat([heads.real, heads.imag], dim=-1) for heads in (q, k))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(0, 1).flatten(1)
    torch.testing.assert_close(y, expected @ layer["o_proj.weight"].T, rtol=1e-11, atol=1e-11)


# label: (nheads, headdim, dstate, x_heads, B_heads, C_heads, width, norm group); the first is attention-initialised
MIXERS = {
    "base": (6, 5, 7, 2, 2, 6, 4, 5),
    "stock mamba-2 groups": (6, 5, 7, 6, 2, 2, 4, 15),
    "heads that do not nest": (6, 5, 7, 1, 2, 3, 4, 5),
    "width 2": (6, 5, 7, 2, 2, 6, 2, 5),
    "one norm group": (6, 5, 7, 2, 2, 6, 3, 30),
}


def mixer(hidden, nheads, headdim, dstate, x_heads, B_heads, C_heads, width, group):
    """Random parameters of one layer, fp64, and its numbers as config.json has them."""
    inner, conv = nheads * headdim, x_heads * headdim + (B_heads + C_heads) * dstate
    shapes = {
        "in_proj.weight": (inner + conv + nheads, hidden),
        "conv1d.weight": (conv, 1, width),
        "conv1d.bias": (conv,),
        "dt_bias": (nheads,),
        "A_log": (nheads,),
        "D": (nheads,),
        "norm.weight": (inner,),
        "out_proj.weight": (hidden, inner),
    }
    config = {"rms_norm_eps": 1e-3, "mamba_norm_group_size": group}
    config |= {"mamba_num_heads": nheads, "mamba_head_dim": headdim, "mamba_d_state": dstate}
    config |= {"mamba_x_heads": x_heads, "mamba_B_heads": B_heads, "mamba_C_heads": C_heads}
    return {name: torch.randn(shape).double() for name, shape in shapes.items()}, config


def by_token(layer, config, u):
    past, state, outputs = [], 0, []
    for token in u:
        y, state = mamba2_ref(token, layer, config, past, state, exact)
        outputs.append(y)
    return torch.stack(outputs)


@pytest.mark.parametrize("shape", MIXERS.values(), ids=MIXERS.keys())
def test_mamba2_equals_the_matrix_form(shape):
    nheads, headdim, dstate, *heads, _, group = shape
    layer, config = mixer(36, *shape)
    u = torch.randn(LENGTH, 36).double()
    z, xBC, dt = (u @ layer["in_proj.weight"].T).split(
        [nheads * headdim, len(layer["conv1d.bias"]), nheads], dim=-1
    )  # [length, ...]
    A = -layer["A_log"].exp()
    parameters = layer["conv1d.weight"][:, 0], layer["conv1d.bias"], A, layer["D"], layer["dt_bias"]
    gated = mamba2_sequence_ref(xBC, dt, *parameters, *heads, dstate).flatten(1) * F.silu(z)
    normed = F.rms_norm(gated.unflatten(-1, (-1, group)), (group,), eps=1e-3).flatten(1) * layer["norm.weight"]
    torch.testing.assert_close(by_token(layer, config, u), normed @ layer["out_proj.weight"].T, rtol=1e-9, atol=1e-9)


def test_mamba2_equals_transformers_mixer():
    """Where theirs has ours: x not shared, groups of B and C, a norm per group. Theirs computes in fp32."""
    shape = (6, 6, 7, 6, 2, 2, 4, 18)
    layer, config = mixer(18, *shape)
    theirs = Mamba2Mixer(
        Mamba2Config(
            num_heads=6, head_dim=6, state_size=7, n_groups=2, hidden_size=18, expand=2, layer_norm_epsilon=1e-3
        ),
        layer_idx=0,
    ).eval()
    theirs.load_state_dict(layer)
    u = torch.randn(LENGTH, 18).double()
    with torch.no_grad():
        expected = theirs(u[None].float())[0].double()
    y = by_token(layer, config, u)
    assert (y - expected).abs().max() <= 1e-5 * y.abs().max()


def test_stored_dtype_rounds_every_kept_tensor():
    """With it, every logit is a number of that dtype; the error is of its size, not of fp64's and not of garbage."""
    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).bfloat16().eval()
    tokens = torch.randint(SIZES["vocab_size"], (LENGTH,))
    config = {**llama.config.to_dict(), "layers": ["attention"] * 3}
    parameters = dict(llama.named_parameters())
    with torch.no_grad():
        exact_logits = hybrid_ref(tokens.tolist(), parameters, config)
        rounded = hybrid_ref(tokens.tolist(), parameters, config, stored_dtype=torch.bfloat16)
        theirs = llama(tokens[None]).logits[0].double()
    assert torch.equal(rounded.bfloat16().double(), rounded)
    error, their_error = ((logits - exact_logits).square().mean().sqrt() for logits in (rounded, theirs))
    assert 0.5 * their_error <= error <= 1.5 * their_error
