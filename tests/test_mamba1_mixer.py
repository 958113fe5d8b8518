"""The Mamba-1 mixer over whole sequences: equal to transformers' where they have it, to the token loop elsewhere."""

import pytest
import torch
from transformers import FalconMambaConfig, JambaConfig, MambaConfig
from transformers.models.falcon_mamba.modeling_falcon_mamba import FalconMambaMixer
from transformers.models.jamba.modeling_jamba import JambaMambaMixer
from transformers.models.mamba.modeling_mamba import MambaMixer

from llamba_kernels.models import LlambaConfig
from llamba_kernels.models.mamba1 import Mamba1Mixer

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
