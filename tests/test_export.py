"""What was loaded is written back with the names, shapes, dtypes and bits that it had; hybrids in others' layouts."""

import json

import pytest
import torch
from foreign import FOREIGN, make_foreign, without_warnings
from helpers import assert_bitwise
from llamas import HYBRID, LLAMA3_ROPE, OWN_SIZES, randomize
from originals import FORMATS, FUSED_ORDER, write
from safetensors.torch import load_file, save_file
from test_cli import llamba
from tiny import write_teacher
from transformers import AutoModelForCausalLM

from llamba_kernels import export, export_model, load_model
from llamba_kernels.models import LlambaConfig, LlambaForCausalLM
from llamba_kernels.models.families import names, parameter_shapes

WEIGHTS, BIN = "model.safetensors", "pytorch_model.bin"


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_bitwise(found[name], tensor)


def settings(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("family", FOREIGN)
def test_round_trip(family, tmp_path):
    """Straight, and by way of a folder of our own; transformers loads it again with nothing missing."""
    theirs = make_foreign(family)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "own")
    expected = load_file(tmp_path / "theirs" / WEIGHTS)
    for name, again in (("straight", model), ("detour", load_model(tmp_path / "own"))):
        assert_same(again.state_dict(), model.state_dict())
        export_model(again, tmp_path / name)
        assert_same(load_file(tmp_path / name / WEIGHTS), expected)
    with without_warnings():
        loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "detour", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(loaded.state_dict(), theirs.state_dict())
    assert loaded.config.to_dict() | {"_name_or_path": ""} == theirs.config.to_dict() | {
        "_name_or_path": "",
        "dtype": "float32",
    }


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip_of_original_formats(name, tmp_path):
    config, mamba_config, parameters = write(tmp_path / "theirs", name)
    export_model(load_model(tmp_path / "theirs"), tmp_path / "again")
    assert_same(torch.load(tmp_path / "again" / BIN, weights_only=True), parameters)
    assert settings(tmp_path / "again") == config
    if mamba_config is not None:
        assert json.loads((tmp_path / "again" / "mamba_config.json").read_text()) == mamba_config
    export_model(load_model(tmp_path / "theirs"), tmp_path / "safe", format="safetensors")
    assert_same(load_file(tmp_path / "safe" / WEIGHTS), parameters)


def test_projections_that_the_authors_joined(tmp_path):
    """Their inference code's names: q, k, v and a Mamba-1 mixer's five projections of its input are one tensor each."""
    *_, parameters = write(tmp_path / "separate", "mamba_in_llama mamba1")
    joined = dict(parameters)
    for i, parts, name in [
        (1, ("q_proj", "k_proj", "v_proj"), "mha"),
        (0, FUSED_ORDER, "mamba"),
        (2, FUSED_ORDER, "mamba"),
    ]:
        owner = "self_attn" if i == 1 else "mamba"
        rows = [joined.pop(f"model.layers.{i}.{owner}.{part}.weight") for part in parts]
        joined[f"model.layers.{i}.{name}.in_proj.weight"] = torch.cat(rows)
    joined["model.layers.1.mha.out_proj.weight"] = joined.pop("model.layers.1.self_attn.o_proj.weight")
    write(tmp_path / "joined", "mamba_in_llama mamba1")
    torch.save(joined, tmp_path / "joined" / BIN)
    model = load_model(tmp_path / "joined")
    assert_same(model.state_dict(), load_model(tmp_path / "separate").state_dict())
    export_model(model, tmp_path / "again")
    assert_same(torch.load(tmp_path / "again" / BIN, weights_only=True), joined)


def test_each_tensor_keeps_its_dtype(tmp_path):
    """Unless the model was loaded in a narrower one, which config.json then says."""
    make_foreign("mamba").save_pretrained(tmp_path / "theirs")
    mixed = {
        name: tensor if name.endswith("A_log") else tensor.bfloat16()
        for name, tensor in load_file(tmp_path / "theirs" / WEIGHTS).items()
    }
    save_file(mixed, tmp_path / "theirs" / WEIGHTS, metadata={"format": "pt"})
    export_model(load_model(tmp_path / "theirs"), tmp_path / "wide")
    assert_same(load_file(tmp_path / "wide" / WEIGHTS), mixed)
    export_model(load_model(tmp_path / "theirs", torch.bfloat16), tmp_path / "narrow")
    assert_same(load_file(tmp_path / "narrow" / WEIGHTS), {name: t.bfloat16() for name, t in mixed.items()})
    export_model(load_model(tmp_path / "theirs", torch.float16), tmp_path / "half")
    assert settings(tmp_path / "half")["dtype"] == "float16"


def test_shards(tmp_path, monkeypatch):
    make_foreign("granitemoehybrid").save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    monkeypatch.setattr(export, "SHARD", 100_000)
    export_model(model, tmp_path / "again")
    index = json.loads((tmp_path / "again" / f"{WEIGHTS}.index.json").read_text())
    files = {name: load_file(tmp_path / "again" / name) for name in set(index["weight_map"].values())}
    assert len(files) > 3
    expected = load_file(tmp_path / "theirs" / WEIGHTS)
    assert_same({name: files[file][name] for name, file in index["weight_map"].items()}, expected)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert_same(load_model(tmp_path / "again").state_dict(), model.state_dict())


def make_hybrid(**change):
    """Attention-initialised mixers, shared heads of x and B included."""
    sizes = {**HYBRID, "num_attention_heads": 6, "head_dim": None, "hidden_size": 96, "rms_norm_eps": 0.01}
    model = LlambaForCausalLM(LlambaConfig(**{**sizes, "initializer_range": 0.15, **change}))
    return randomize(model).double().eval()


@pytest.mark.parametrize("layout", ["granitemoehybrid", "bamba"])
@pytest.mark.parametrize(
    "change",
    [{}, {"tie_word_embeddings": True}, {"rope_parameters": LLAMA3_ROPE}, {"layers": ["mamba2"] * 3}],
    ids=["hybrid", "tied", "llama3 rope scaling", "mamba2 only"],
)
def test_a_hybrid_in_another_layout_gives_its_logits_in_transformers(layout, change, tmp_path):
    model = make_hybrid(**change)
    export_model(model, tmp_path / layout, layout=layout)
    tokens = torch.randint(97, (2, 30))
    with without_warnings(), torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / layout, dtype=torch.float64)
        expected, logits = model(tokens).logits, theirs(tokens, use_cache=False).logits
    assert (logits - expected).abs().max() <= 2e-6 * expected.abs().max()  # both have fp32 inside


def test_a_hybrid_in_its_authors_layout(tmp_path):
    model = make_hybrid(rms_norm_eps=9.999999747378752e-06).float()  # the layout's 1e-5, read from a GGUF file
    export_model(model, tmp_path / "theirs", layout="mamba_in_llama")
    assert_same(load_file(tmp_path / "theirs" / WEIGHTS), model.state_dict())
    again = load_model(tmp_path / "theirs")
    assert again.config.layers == model.config.layers
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "layout, change, sentence",
    [
        ("gguf", {}, "layout must be mamba_in_llama, granitemoehybrid, bamba; got gguf"),
        ("bamba", {"layers": ["mamba1"] * 3}, "layers must be attention or mamba2 in the layout bamba; got mamba1"),
        ("bamba", {"hidden_act": "gelu"}, "hidden_act must be silu, the activation of the convolution and of the gate"),
        ("bamba", {"rotary_dim": 0}, "rotary_dim must be positive in the layout bamba"),
        ("bamba", {"residual_multiplier": 0.5}, "residual_multiplier must be 1.0, which is what the layout bamba has"),
        ("granitemoehybrid", {"head_dim": 32}, "head_dim must be 16, which is what the layout"),
        ("granitemoehybrid", {"sliding_window": 8}, "sliding_window must be None, which is what the layout granitemoe"),
        ("granitemoehybrid", {"mlp_bias": True}, "mlp_bias must be False, which is what the layout granitemoehybrid"),
        ("granitemoehybrid", {"mamba_norm_eps": 0.1}, "mamba_norm_eps must be 0.01, which is what the layout granit"),
        ("granitemoehybrid", {"rotary_dim": 8}, "rotary_dim must be 16, which is what the layout granitemoehybrid"),
        ("granitemoehybrid", OWN_SIZES, "mamba_C_heads must divide the 3 groups of the gated norm"),
        ("mamba_in_llama", {}, "mamba_norm_eps must be 1e-05, which is what the layout mamba_in_llama has; got 0.01"),
    ],
)
def test_what_a_layout_has_no_place_for(layout, change, sentence, tmp_path):
    with pytest.raises(ValueError) as error:
        export_model(make_hybrid(**change), tmp_path / "out", layout=layout)
    assert str(error.value).startswith(f"export_model: {sentence}") and not (tmp_path / "out").exists()


def test_what_is_no_longer_what_was_loaded(tmp_path):
    make_foreign("llama").save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    model.config.layers = ["mamba2", "attention", "attention"]
    with pytest.raises(ValueError, match="export_model: layers must be .*, as the llama config.json that it came with"):
        export_model(model, tmp_path / "out")
    with pytest.raises(
        ValueError, match="export_model: layout must be given .mamba_in_llama, granitemoehybrid, bamba. for"
    ):
        export_model(make_hybrid(), tmp_path / "out")
    with pytest.raises(ValueError, match="export_model: format must be safetensors or bin; got gguf"):
        export_model(model, tmp_path / "out", format="gguf")
    with pytest.raises(ValueError, match="export_model: source must be a folder; got nowhere"):
        export_model(model, tmp_path / "out", source="nowhere")
    with pytest.raises(ValueError, match="export_model: out_dir must not exist yet"):
        export_model(model, tmp_path / "theirs")


def test_every_parameter_of_ours_has_one_name_of_theirs(tmp_path):
    for family in FOREIGN:
        make_foreign(family).save_pretrained(tmp_path / family)
        model = load_model(tmp_path / family)
        rules = names(model.config)
        ours = [name for rule in rules for name in rule.ours]
        assert sorted(ours) == sorted(parameter_shapes(model)) and len({rule.theirs for rule in rules}) == len(rules)


def test_the_command_line_copies_the_tokenizer(tmp_path):
    teacher = write_teacher(tmp_path / "teacher")
    done = llamba("export", teacher, tmp_path / "again")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert_same(load_file(tmp_path / "again" / WEIGHTS), load_file(teacher / WEIGHTS))
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()
