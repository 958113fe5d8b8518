"""The references of the authors' formats against second formulations: transformers' models, and a closed form."""

import torch
from foreign import without_warnings
from originals import FORMATS, MIXERS, random_parameters
from torch.nn import functional as F
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from python_ref.mamba_in_llama import grouped_mamba1_ref
from python_ref.mamba_ssm import mamba_ssm_ref

LENGTH = 37


def test_state_spaces_is_transformers_mamba():
    """Their names differ in one word; their scan is in fp32."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "layer_norm_epsilon": 1e-5}
    models = {
        "state_spaces mamba1": (MambaForCausalLM, MambaConfig(**sizes, vocab_size=104, state_size=32)),
        "state_spaces mamba2": (
            Mamba2ForCausalLM,
            Mamba2Config(**sizes, vocab_size=112, num_heads=3, head_dim=32, state_size=48, n_groups=3),
        ),
    }
    for name, (kind, theirs) in models.items():
        function, variant = FORMATS[name]
        config, _, shapes = function(variant)
        parameters = random_parameters(shapes)
        model = kind(theirs).double().eval()
        model.load_state_dict({n.replace("embedding", "embeddings"): t for n, t in parameters.items()})
        tokens = torch.randint(97, (LENGTH,))
        with without_warnings(), torch.no_grad():
            expected = model(tokens[None], use_cache=False).logits[0]
        logits = mamba_ssm_ref(tokens.tolist(), parameters, config)
        assert (logits - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_the_grouped_mixer_is_a_weighted_sum_of_earlier_tokens():
    """All in fp64: no recurrence, no loop over groups; heads are gathered by index instead of repeated."""
    layer = {name: t.double() for name, t in random_parameters(MIXERS["mamba1"]).items()}
    u = torch.randn(LENGTH, 48).double()
    past, state, y = [], 0, []
    for token in u:
        mixed, state = grouped_mamba1_ref(token, layer, past, state, lambda value: value)
        y.append(mixed)

    x, z, B, C = (u @ layer[f"{name}.weight"].T for name in ("in_proj_x", "in_proj_z", "B_proj", "C_proj"))
    channel = torch.arange(96)
    group, shared = channel // 16, channel // 16 // 3  # six groups of 16 channels, two of x and B
    x = x[:, shared * 16 + channel % 16]
    x = F.silu(F.conv1d(F.pad(x.T, (3, 0)), layer["conv1d.weight"], layer["conv1d.bias"], groups=96).T)
    low = u @ layer["dt_proj_down.weight"].T
    step = F.softplus(F.linear(low, layer["dt_proj.weight"], layer["dt_proj.bias"]) + layer["dt_proj.bias"])
    B, C = B.view(LENGTH, 2, 16)[:, shared], C.view(LENGTH, 6, 16)[:, group]  # [length, channel, 16]
    total = step.cumsum(0)
    between = (total[:, None] - total[None]).clamp(min=0)  # [to, from, channel]
    decay = torch.exp(-between[..., None] * torch.exp(layer["A_log"]))
    weights = torch.einsum("tcn,tscn,scn->tsc", C, decay, B) * torch.ones(LENGTH, LENGTH).tril()[..., None]
    expected = torch.einsum("tsc,sc->tc", weights, step * x) + layer["D"] * x
    expected = (expected * F.silu(z)) @ layer["out_proj.weight"].T
    torch.testing.assert_close(torch.stack(y), expected, rtol=1e-10, atol=1e-10)
