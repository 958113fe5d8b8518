"""What a family's config.json may ask for and is not run: one sentence with the field, what runs, and the value."""

import json

import pytest
from damaged import refusal
from foreign import FOREIGN, make_foreign
from originals import LLAMA, MAMBA_CONFIG, MAMBA_CONFIGS, mamba_in_llama, state_spaces

from llamba_kernels.models import families, load_model

LIMIT = "time_step_limit must be [0.0, Infinity], as step sizes are not clipped; got "
SILU = "must be silu, the activation of the convolution and of the gate that is run; got 'gelu'"
EXPERTS = "as mixtures of experts are not run; got "


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("refused")
    for family in FOREIGN:
        make_foreign(family).save_pretrained(root / family)
    return root


@pytest.mark.parametrize(
    "family, change, sentence",
    [
        ("mamba", {"hidden_act": "gelu"}, f"hidden_act {SILU}"),
        ("falcon_mamba", {"hidden_act": "gelu"}, f"hidden_act {SILU}"),
        ("mamba2", {"hidden_act": "gelu"}, f"hidden_act {SILU}"),
        ("mamba2", {"time_step_limit": [0.001, 0.1]}, f"{LIMIT}[0.001, 0.1]"),
        ("mamba2", {"n_groups": 2}, "n_groups must divide the number of heads, 3; got 2"),
        ("bamba", {"hidden_act": "gelu"}, f"hidden_act {SILU}"),
        ("bamba", {"time_step_limit": [0.0, 5.0]}, f"{LIMIT}(0.0, 5.0)"),
        ("bamba", {"mamba_n_groups": 2}, "n_groups must divide the number of heads, 3; got 2"),
        (
            "bamba",
            {"attn_rotary_emb": 4},
            "attn_rotary_emb must be 6, the part of a head that transformers rotates; got 4",
        ),
        ("jamba", {"hidden_act": "gelu"}, f"hidden_act {SILU}"),
        ("jamba", {"num_experts": 16}, f"num_experts must be 1, {EXPERTS}16"),
        ("nemotron_h", {"mamba_hidden_act": "gelu"}, f"mamba_hidden_act {SILU}"),
        ("nemotron_h", {"time_step_limit": [0.0, 0.1]}, f"{LIMIT}[0.0, 0.1]"),
        ("nemotron_h", {"attention_bias": True}, "attention_bias must be False, as its attention has none; got True"),
        ("nemotron_h", {"sliding_window": 8}, "sliding_window must be None, as its attention sees all; got 8"),
        ("nemotron_h", {"num_nextn_predict_layers": 1}, "num_nextn_predict_layers must be 0, as its extra prediction"),
        (
            "nemotron_h",
            {"layers_block_type": ["linear_attention", "moe"]},
            f"layers_block_type must hold only M, * and -, {EXPERTS}['moe']",
        ),
        ("granitemoehybrid", {"hidden_act": "gelu"}, f"hidden_act {SILU}"),
        ("granitemoehybrid", {"time_step_limit": [0.1, 0.2]}, f"{LIMIT}(0.1, 0.2)"),
        ("granitemoehybrid", {"num_local_experts": 8}, f"num_local_experts must be 0, {EXPERTS}8"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type must be rope or nope; got"),
    ],
)
def test_what_is_not_run(folders, tmp_path, family, change, sentence):
    settings = json.loads((folders / family / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
    assert refusal(tmp_path).startswith(f"load_model: {sentence}")


@pytest.mark.parametrize("family", FOREIGN)
def test_rope_scalings_and_states_that_decoding_does_not_run(folders, tmp_path, family):
    """Checked where all models' settings are: by LlambaConfig, in its own words."""
    settings = json.loads((folders / family / "config.json").read_text())
    if "rope_parameters" in settings and settings.get("position_embedding_type", "rope") == "rope":
        change, field = (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 9.0, "factor": 2.0}},
            "rope_parameters",
        )
    else:
        states = {"state_size", "ssm_state_size", "mamba_d_state"} & settings.keys()
        change, field = dict.fromkeys(states, 24), "d_state"
    (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
    assert field in refusal(tmp_path) and refusal(tmp_path).startswith("LlambaConfig: ")


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"ssm_cfg": None}, "ssm_cfg must be an object in mamba_config.json; got None"),
        (
            {"ssm_cfg": {"expand": 1, "headdim": 64}},
            "ssm_cfg must hold only expand, ngroups and d_state in mamba_config.js",
        ),
        ({"ssm_cfg": {"ngroups": 6}}, "d_state must be a positive int in ssm_cfg; got None"),
        (
            {"ssm_cfg": {"ngroups": 5, "d_state": 16}},
            "d_inner must be ngroups * d_state = 80 in mamba_config.json; got 96",
        ),
        ({"d_xb": 40}, "d_xb must be a multiple of the state's 16 columns in mamba_config.json; got 40"),
        (
            {"d_xb": 40, "ssm_cfg": MAMBA_CONFIGS["mamba2"]["ssm_cfg"]},
            "d_xb must be a multiple of d_state, 16, in mamba_con",
        ),
        ({"d_xb": None}, "d_xb must be a positive int in mamba_config.json; got None"),
        ({"d_model": 64}, "d_model must be config.json's 48 in mamba_config.json; got 64"),
        ({"n_layer": 2}, "n_layer must be config.json's 3 in mamba_config.json; got 2"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps must be config.json's 1e-05 in mamba_config.json; got 1e-06"),
        ({"attn_layers": [3]}, "attn_layers must be a list of layers below 3 in mamba_config.json; got [3]"),
        ({"attn_layers": None}, "attn_layers must be a list of layers below 3 in mamba_config.json; got None"),
    ],
)
def test_mamba_config(tmp_path, change, sentence):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "mamba_config.json").write_text(json.dumps({**MAMBA_CONFIG, **change}))
    assert refusal(tmp_path).startswith(f"load_model: {sentence}")


def test_a_mamba_config_beside_another_model(folders, tmp_path):
    (tmp_path / "config.json").write_text((folders / "mamba" / "config.json").read_text())
    (tmp_path / "mamba_config.json").write_text(json.dumps(MAMBA_CONFIG))
    assert (
        refusal(tmp_path) == "load_model: model_type must be llama or mistral beside a mamba_config.json; got 'mamba'"
    )


@pytest.mark.parametrize("variant", MAMBA_CONFIGS)
def test_d_inner_that_is_left_out(variant):
    """As in several published Mamba-1 variants: expand * d_model. The teacher may be a Mistral with its window."""
    config, mamba_config, _ = mamba_in_llama(variant)
    given = {**mamba_config, "d_inner": None, "ssm_cfg": {**mamba_config["ssm_cfg"], "expand": 2}}
    teacher = {**config, "model_type": "mistral", "sliding_window": 32}
    found = families.config_of({**teacher, "mamba_config": given})
    expected = families.config_of({**teacher, "mamba_config": mamba_config})
    assert (found.layers, found.sliding_window) == ([variant, "attention", variant], 32)
    assert families.foreign_shapes(found) == families.foreign_shapes(expected)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"rms_norm": False}, "rms_norm must be true, as LayerNorm is not run; got False"),
        ({"bidirectional": True}, "bidirectional must be false, as decoding goes forwards; got True"),
        (
            {"attn_layer_idx": [1]},
            "attn_layer_idx must be empty, as attention with a convolution and a joined projection",
        ),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "layer must be Mamba1 or Mamba2 in ssm_cfg; got 'Mamba3'"),
        ({"ssm_cfg": {"ngroups": 2}}, "ssm_cfg must hold what Mamba1 has; got ['ngroups']"),
        (
            {"ssm_cfg": {"layer": "Mamba2", "norm_before_gate": True}},
            "norm_before_gate must be False in ssm_cfg, which is what is run; got True",
        ),
        (
            {"ssm_cfg": {"layer": "Mamba2", "rmsnorm": False}},
            "rmsnorm must be True in ssm_cfg, which is what is run; got False",
        ),
        (
            {"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}},
            "D_has_hdim must be False in ssm_cfg, which is what is run; got True",
        ),
        ({"ssm_cfg": {"layer": "Mamba2", "d_ssm": 48}}, "d_ssm must be None in ssm_cfg, which is what is run; got 48"),
        (
            {"ssm_cfg": {"layer": "Mamba2", "dt_limit": [0, 1]}},
            "dt_limit must be [0.0, Infinity] in ssm_cfg, as step sizes are not clipped; got [0, 1]",
        ),
        (
            {"ssm_cfg": {"layer": "Mamba2", "headdim": 20}},
            "headdim must divide expand * d_model = 96 in ssm_cfg; got 20",
        ),
        ({"ssm_cfg": {"expand": "2"}}, "expand must be a number in ssm_cfg; got '2'"),
        ({"d_model": "48"}, "d_model must be a positive int; got '48'"),
        ({"pad_vocab_size_multiple": 0}, "pad_vocab_size_multiple must be a positive int; got 0"),
    ],
)
def test_state_spaces(tmp_path, change, sentence):
    config, *_ = state_spaces("mamba1")
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    assert refusal(tmp_path).startswith(f"load_model: {sentence}")


def test_state_spaces_mlps_and_vocabularies():
    """d_intermediate is rounded up to 128, vocab_size to its multiple; both halves of the MLP are one tensor."""
    config, _, shapes = state_spaces("mamba2")
    config |= {"d_intermediate": 200, "tie_embeddings": False, "attn_layer_idx": []}
    expected = dict(shapes)
    for i in range(3):
        expected[f"backbone.layers.{i}.norm2.weight"] = (48,)
        expected[f"backbone.layers.{i}.mlp.fc1.weight"] = (512, 48)
        expected[f"backbone.layers.{i}.mlp.fc2.weight"] = (48, 256)
    assert families.foreign_shapes(families.config_of(config)) == expected


@pytest.mark.parametrize("family", FOREIGN)
def test_a_shape_that_does_not_match_the_config(folders, tmp_path, family):
    """Where config.json is wrong: the first tensor that it makes wrong, both shapes."""
    settings = json.loads((folders / family / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folders / family / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "vocab_size": 98}))
    sentence = refusal(tmp_path)
    assert "must have shape (98, 48) as config.json says; got (97, 48)" in sentence
    (tmp_path / "config.json").write_text(json.dumps(settings))
    load_model(tmp_path)


def test_a_special_float_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "rms_norm_eps": {"__float__": []}}))
    assert refusal(tmp_path).startswith(f"load_model: config.json of {tmp_path} must be JSON; got float() argument")
