"""The hybrid model: equal to transformers' Llama where it is one, padding, loss, hand-over, its configuration."""

import pytest
import torch
from llamas import HYBRID, LLAMAS, SIZES
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import llamba_kernels  # noqa: F401  (registers the model with transformers)
from llamba_kernels.models import LlambaConfig, LlambaForCausalLM, load_model


@pytest.fixture
def hybrid():
    config = LlambaConfig(**HYBRID, mamba_chunk_size=4, pad_token_id=0)
    model = LlambaForCausalLM(config).eval()
    for i in config.mamba_layers:
        torch.nn.init.normal_(model.model.layers[i].mamba.conv1d.bias)  # a bias of zero would hide unmasked padding
    return model


def tokens(batch, length):
    return torch.randint(1, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("change", LLAMAS.values(), ids=LLAMAS.keys())
def test_a_llama_folder_gives_the_logits_of_transformers(change, tmp_path):
    llama = LlamaForCausalLM(LlamaConfig(**{**SIZES, **change})).eval()
    for name, parameter in llama.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    llama.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == llama.config.tie_word_embeddings
    ids = tokens(2, 40)
    with torch.no_grad():
        expected, got = llama(ids).logits, ours(ids).logits
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_hybrid_loads_through_auto_classes(hybrid, tied, tmp_path):
    if tied:
        hybrid = LlambaForCausalLM(LlambaConfig(**HYBRID, tie_word_embeddings=True)).eval()
    hybrid.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is LlambaForCausalLM and AutoConfig.from_pretrained(tmp_path).layers == hybrid.config.layers
    assert torch.equal(again(tokens(1, 9)).logits, hybrid(tokens(1, 9)).logits)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.layers.0.mamba.in_proj.weight" in names and "model.layers.1.self_attn.q_proj.weight" in names


def test_mixer_parameters_have_the_layout_of_mamba_in_llama(hybrid):
    shapes = {name: tuple(p.shape) for name, p in hybrid.model.layers[0].mamba.named_parameters()}
    d_inner, conv_dim = 6 * 8, 2 * 8 + 2 * 16 + 6 * 16
    assert shapes == {
        "dt_bias": (6,),
        "A_log": (6,),
        "D": (6,),
        "in_proj.weight": (d_inner + conv_dim + 6, 48),
        "conv1d.weight": (conv_dim, 1, 4),
        "conv1d.bias": (conv_dim,),
        "norm.weight": (d_inner,),
        "out_proj.weight": (48, d_inner),
    }


def test_mixer_equals_the_formula_token_by_token(hybrid):
    mixer = hybrid.model.layers[0].mamba
    u = torch.randn(1, 11, 48)
    with torch.no_grad():
        torch.testing.assert_close(mixer(u), mixer_loop(mixer, u), rtol=1e-4, atol=1e-5)


def mixer_loop(mixer, u):
    """What mamba2.py computes, one token and one head at a time, for 6 heads of 8 x 16 and 2 shared x and B heads."""
    z, x, B, C, dt = mixer.in_proj(u[0]).split([48, 16, 32, 96, 6], dim=-1)
    raw = torch.cat([torch.zeros(3, 144), torch.cat([x, B, C], dim=-1)])
    taps, bias = mixer.conv1d.weight[:, 0], mixer.conv1d.bias
    state, outputs = torch.zeros(6, 8, 16), []
    for t in range(u.shape[1]):
        conv = torch.nn.functional.silu((raw[t : t + 4].T * taps).sum(-1) + bias)
        x_t, B_t, C_t = conv[:16].view(2, 8), conv[16:48].view(2, 16), conv[48:].view(6, 16)
        y = torch.empty(6, 8)
        for h in range(6):
            step = torch.nn.functional.softplus(dt[t, h] + mixer.dt_bias[h])
            decay = torch.exp(-step * mixer.A_log[h].exp())
            state[h] = decay * state[h] + step * torch.outer(x_t[h // 3], B_t[h // 3])
            y[h] = state[h] @ C_t[h] + mixer.D[h] * x_t[h // 3]
        gated = y * torch.nn.functional.silu(z[t].view(6, 8))
        normed = gated / (gated.square().mean(-1, keepdim=True) + mixer.norm.eps).sqrt()
        outputs.append(mixer.out_proj(mixer.norm.weight * normed.flatten()))
    return torch.stack(outputs)[None]


def test_left_padding_changes_nothing(hybrid):
    ids = tokens(1, 10)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 5 + [1] * 10])
    with torch.no_grad():
        alone = hybrid(ids).logits
        batched = hybrid(torch.cat([padded, tokens(1, 15)]), attention_mask=torch.cat([mask, torch.ones_like(mask)]))
    assert torch.isfinite(batched.logits).all()
    torch.testing.assert_close(batched.logits[:1, 5:], alone, rtol=1e-4, atol=1e-4)


def test_labels_give_the_shifted_cross_entropy(hybrid):
    ids = tokens(2, 12)
    labels = ids.clone()
    labels[0, :4] = -100
    output = hybrid(ids, labels=labels)
    shifted = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(*shifted, ignore_index=-100))


def test_outputs_on_request(hybrid):
    ids = tokens(2, 12)
    output = hybrid(ids, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    torch.testing.assert_close(hybrid.lm_head(output.hidden_states[-1]), output.logits)
    torch.testing.assert_close(hybrid(ids, logits_to_keep=2).logits, output.logits[:, -2:])
    embeds = hybrid.get_input_embeddings()(ids)
    torch.testing.assert_close(hybrid(inputs_embeds=embeds).logits, output.logits)


def test_gradient_checkpointing_keeps_the_gradients(hybrid):
    gradients = []
    for checkpointing in (False, True):
        hybrid.train()
        if checkpointing:
            hybrid.activation_checkpointing_enable()
        hybrid.zero_grad()
        hybrid(tokens(2, 12), labels=tokens(2, 12)).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in hybrid.named_parameters()})
    assert hybrid.model.layers[0].gradient_checkpointing
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_generate_is_greedy_recomputation_with_and_without_padding(hybrid):
    ids = tokens(1, 7)
    expected = ids
    with torch.no_grad():
        for _ in range(8):
            expected = torch.cat([expected, hybrid(expected).logits[:, -1:].argmax(-1)], dim=1)
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(hybrid.generate(ids, **settings), expected)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 7])
    assert torch.equal(hybrid.generate(padded, attention_mask=mask, **settings)[:, 3:], expected)


class Recorder:
    def __init__(self, fold_point):
        self.fold_point = fold_point
        self.kv, self.ssm = {}, {}

    def attention(self, layer_idx, k, v):
        self.kv[layer_idx] = (k, v)

    def mamba2(self, layer_idx, xBC, dt, state):
        self.ssm[layer_idx] = (xBC, dt, state)


@pytest.mark.parametrize("fold_point", [0, 3, 8, 10])
def test_handover_gives_what_decoding_needs(hybrid, fold_point):
    ids = tokens(1, 10)
    recorder = Recorder(fold_point)
    with torch.no_grad():
        logits = hybrid(ids, handover=recorder).logits
        torch.testing.assert_close(logits, hybrid(ids).logits, rtol=1e-4, atol=1e-5)

        shorter = Recorder(fold_point)  # the state after f tokens is the last state of a prompt of f tokens
        if fold_point:
            hybrid(ids[:, :fold_point], handover=shorter)
    assert recorder.kv.keys() == {1} and recorder.ssm.keys() == {0, 2}
    k, v = recorder.kv[1]
    assert k.shape == v.shape == (1, 2, 10, 8)
    if fold_point:
        torch.testing.assert_close(k[:, :, :fold_point], shorter.kv[1][0], rtol=1e-4, atol=1e-5)
    for layer, (xBC, dt, state) in recorder.ssm.items():
        assert xBC.shape == (1, 10, 144) and dt.shape == (1, 10, 6)
        assert state.shape == (1, 6, 8, 16) and state.dtype == torch.float32
        expected = shorter.ssm[layer][2] if fold_point else torch.zeros_like(state)
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    mixer = hybrid.model.layers[0].mamba
    u = hybrid.model.layers[0].input_layernorm(hybrid.model.embed_tokens(ids))
    torch.testing.assert_close(torch.cat(recorder.ssm[0][:2], dim=-1), mixer.in_proj(u)[..., mixer.d_inner :])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("layers", ["attention"], "layers must name 3 layers; got ['attention']"),
        (
            "layers",
            ["attention", "mamba3", "attention"],
            "layers must hold only attention or mamba1 or mamba2 or none; got ",
        ),
        ("layers", ["attention", "attention", "mamba2"], "mamba_d_state must be a multiple of 16 up to 256, "),
        ("num_key_value_heads", 4, "num_key_value_heads must divide num_attention_heads, 6; got 4"),
        ("mamba_B_heads", 4, "mamba_B_heads must divide mamba_num_heads, 6; got 4"),
        ("mamba_d_conv", 5, "mamba_d_conv must be 2, 3 or 4; got 5"),
        ("mamba_norm_group_size", 7, "mamba_norm_group_size must divide d_inner, 48; got 7"),
        ("mamba_chunk_size", 0, "mamba_chunk_size must be positive; got 0"),
        ("head_dim", 7, "head_dim must be even and positive; got 7"),
        ("rope_parameters", {"rope_type": "dynamic", "factor": 2.0}, "rope_parameters must have a rope_type in "),
        ("mlp_layers", [True], "mlp_layers must say true or false of 3 layers; got [True]"),
        ("rotary_dim", 7, "rotary_dim must be even and at most head_dim, 8; got 7"),
        ("rotary_dim", -2, "rotary_dim must be positive; got -2"),
        ("sliding_window", 0, "sliding_window must be positive; got 0"),
        ("attention_scale", float("nan"), "attention_scale must be positive and finite; got nan"),
        ("attention_scale", -1.0, "attention_scale must be positive and finite; got -1.0"),
        ("embedding_multiplier", float("inf"), "embedding_multiplier must be finite; got inf"),
        ("logits_divisor", 0.0, "logits_divisor must be positive and finite; got 0.0"),
        ("mamba_norm_eps", -1.0, "mamba_norm_eps must be positive and finite; got -1.0"),
    ],
)
def test_a_faulty_config_is_one_sentence(field, value, message):
    with pytest.raises(ValueError) as error:
        LlambaConfig(**{**SIZES, field: value})
    assert str(error.value).startswith(f"LlambaConfig: {message}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers": ["none"] * 3, "mlp_layers": [True, False, True]},
            'mlp_layers must be true for every layer that is "',
        ),
        ({"mamba1_selection": "x"}, "mamba1_selection must be conv or input; got 'x'"),
        (
            {"mamba1_d_state": 80},
            "mamba1_d_state must be a multiple of 16 up to 64, the state sizes that decoding runs",
        ),
        (
            {"mamba1_selection": "input", "mamba1_d_inner": 40},
            "mamba1_d_inner must be a multiple of mamba1_d_state, 16;",
        ),
        ({"mamba1_x_heads": 2}, "mamba1_x_heads must divide mamba1_d_inner / 96 = 1; got 2"),
        ({"mamba1_B_heads": 7}, "mamba1_B_heads must divide mamba1_d_inner, 96; got 7"),
        ({"mamba1_C_heads": 5}, "mamba1_C_heads must divide mamba1_d_inner, 96; got 5"),
        (
            {"mamba1_inner_norm": "x"},
            "mamba1_inner_norm must be null or plain or weighted when mamba1_selection is conv;",
        ),
        (
            {"mamba1_selection": "input", "mamba1_inner_norm": "plain", "head_dim": 16},
            "mamba1_inner_norm must be null when mamba1_selection is input; got 'plain'",
        ),
        ({"mamba1_inner_norm_eps": 0.0}, "mamba1_inner_norm_eps must be positive and finite; got 0.0"),
    ],
)
def test_a_faulty_mamba1_config_is_one_sentence(change, message):
    with pytest.raises(ValueError) as error:
        LlambaConfig(**{**SIZES, "layers": ["mamba1"] * 3, **change})
    assert str(error.value).startswith(f"LlambaConfig: {message}")


def test_a_config_of_before_these_fields_is_the_same_model():
    """Every field that a config.json lacks has the meaning that it had when there was no such field."""
    now = LlambaConfig(**HYBRID).to_dict()
    new = ("mlp", "rotary", "sliding", "attention_scale", "embedding", "residual", "logits", "mamba1_", "origin")
    old = {name: now[name] for name in now if not name.startswith((*new, "mamba_conv", "mamba_proj", "mamba_norm_eps"))}
    assert "mamba_norm_group_size" in old and LlambaConfig(**old).to_dict() == now
    assert now["mlp_layers"] == [True] * 3 and now["rotary_dim"] == 8 and now["mamba_norm_eps"] == now["rms_norm_eps"]


def test_from_llama_derives_the_mixers_from_the_attention():
    config = LlambaConfig.from_llama(LlamaConfig(**SIZES, head_dim=16), mamba_layers=[2, 0])
    assert config.layers == ["mamba2", "attention", "mamba2"]
    assert (config.mamba_num_heads, config.mamba_head_dim, config.mamba_d_state) == (6, 16, 16)
    assert (config.mamba_x_heads, config.mamba_B_heads, config.mamba_C_heads) == (2, 2, 6)
    with pytest.raises(ValueError, match="mamba_layers must be in 0..2; got 3"):
        LlambaConfig.from_llama(LlamaConfig(**SIZES), mamba_layers=[3])
