"""The Mamba-1 mixer over whole sequences, and its slow reference: equal to transformers', and to each other."""

import pytest
import torch
from transformers import FalconMambaConfig, JambaConfig, MambaConfig
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from llamba_kernels.models import LlambaConfig
from llamba_kernels.models.mamba1 import Mamba1Mixer, scan_by_token
from python_ref.mamba1_layer import mamba1_ref

SIZES = {"hidden_size": 36, "num_attention_heads": 6, "num_hidden_layers": 1, "layers": ["mamba1"]}
SIZES |= {"mamba1_d_inner": 72, "mamba1_dt_rank": 5}


def mamba(**change):
    return MambaMixer(MambaConfig(hidden_size=36, time_step_rank=5, **change), 0)


def falcon_mamba():
    return FalconMambaMixer(FalconMambaConfig(hidden_size=36, time_step_rank=5), 0, initialize_mixer_weights=False)


def jamba():
    sizes = {"hidden_size": 36, "mamba_dt_rank": 5, "num_attention_heads": 6, "num_key_value_heads": 2}
    return JambaMambaMixer(JambaConfig(**sizes), 0)


STOCK = {
    "mamba": (mamba, {}),
    "mamba, other sizes": (lambda: mamba(state_size=48, conv_kernel=3), {"mamba1_d_state": 48, "mamba_d_conv": 3}),
    "mamba, biases the other way": (
        lambda: mamba(use_bias=True, use_conv_bias=False),
        {"mamba_proj_bias": True, "mamba_conv_bias": False},
    ),
    "falcon-mamba": (falcon_mamba, {"mamba1_inner_norm": "plain"}),
    "jamba": (jamba, {"mamba1_inner_norm": "weighted"}),
}


def make_mixer(**change):
    mixer = Mamba1Mixer(LlambaConfig(**(SIZES | change)), 0).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, 0.3)
    return mixer


@pytest.mark.parametrize("theirs, change", STOCK.values(), ids=STOCK)
def test_equals_transformers_mixer(theirs, change):
    theirs, ours = theirs().eval(), make_mixer(**change)
    state = {name.replace("B_layernorm", "b_layernorm"): p for name, p in ours.state_dict().items()}
    theirs.load_state_dict({name.replace("C_layernorm", "c_layernorm"): p for name, p in state.items()})
    u, mask = torch.randn(2, 13, 36), torch.ones(2, 13)
    with torch.no_grad():
        expected, y = theirs(u), ours(u)
        assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
        mask[0, :4] = 0
        if not change.get("mamba_proj_bias"):  # theirs convolves what the bias makes of padding
            expected, y = theirs(u, attention_mask=mask), ours(u, mask)
            assert (y - expected)[mask.bool()].abs().max() <= 1e-5 * expected.abs().max()


INPUT = {"mamba1_selection": "input", "mamba1_dt_bias_count": 2, "head_dim": 16, "mamba1_d_inner": 96}
EVERY = {name: change for name, (_, change) in STOCK.items()} | {
    "input": {**INPUT, "num_key_value_heads": 2},
    "input, other sizes": {
        **INPUT,
        "mamba1_d_state": 32,
        "mamba1_x_heads": 3,
        "mamba1_B_heads": 6,
        "mamba1_C_heads": 2,
    },
    "input, biases": {**INPUT, "mamba_proj_bias": True, "mamba_conv_bias": False},
    "conv, groups": {"mamba1_B_heads": 3, "mamba1_C_heads": 2, "mamba_d_conv": 2},
}


@pytest.mark.parametrize("change", EVERY.values(), ids=EVERY)
def test_equals_the_reference_token_by_token(change):
    mixer, u = make_mixer(**change), torch.randn(23, 36)
    layer, past, state, expected = {name: p.double() for name, p in mixer.named_parameters()}, [], 0, []
    for token in u.double():
        y, state = mamba1_ref(token, layer, mixer_config(change), past, state, lambda value: value)
        expected.append(y)
    expected = torch.stack(expected)
    with torch.no_grad():
        for y in (mixer(u[None])[0], mixer.double()(u.double()[None])[0]):  # by the operator, and in torch
            assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


def mixer_config(change):
    return LlambaConfig(**(SIZES | change)).to_dict()


@pytest.mark.parametrize("change", [EVERY["input"], EVERY["jamba"]], ids=["input", "conv"])
def test_left_padding_changes_nothing_and_a_state_goes_on(change):
    mixer, u = make_mixer(**change, mamba_proj_bias=True), torch.randn(2, 12, 36)
    mask = torch.ones(2, 12)
    mask[0, :5] = 0
    with torch.no_grad():
        alone, padded = mixer(u[:1, 5:]), mixer(u, mask)
        torch.testing.assert_close(padded[:1, 5:], alone, rtol=1e-4, atol=1e-5)
        for fold_point in (0, 1, 7, 12):
            recorder = Recorder(fold_point)
            torch.testing.assert_close(mixer(u, None, recorder), mixer(u), rtol=1e-4, atol=1e-5)
            x_raw, x, dt, B, state = recorder.given
            x_dim, B_dim = mixer.x_heads * mixer.headdim, mixer.B_heads * mixer.d_state
            assert [t.shape[-1] for t in (x_raw, x, dt, B)] == [x_dim, mixer.d_inner, mixer.d_inner, B_dim]
            last = Recorder(fold_point)  # the state after f tokens is the last state of f tokens
            mixer(u[:, :fold_point], None, last)
            torch.testing.assert_close(state, last.given[-1], rtol=1e-4, atol=1e-5)
            assert state.shape == (2, mixer.d_inner, mixer.d_state) and state.dtype == torch.float32


class Recorder:
    def __init__(self, fold_point):
        self.fold_point = fold_point

    def mamba1(self, layer_idx, *given):
        self.given = given


def test_gradients_flow_to_every_parameter():
    """And are those of the loop over tokens in fp64."""
    for change in EVERY.values():
        mixer = make_mixer(**change)
        mixer(torch.randn(2, 9, 36)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in mixer.parameters())
    small = [torch.rand(1, 4, 6), torch.rand(1, 4, 6), -torch.rand(6, 2), torch.rand(1, 4, 4), torch.rand(1, 4, 6)]
    small += [torch.rand(6), torch.rand(1, 4, 6), torch.rand(6)]
    inputs = [t.double().requires_grad_() for t in small]
    assert torch.autograd.gradcheck(lambda *given: scan_by_token(*given, 2, 3, None)[0], inputs)
