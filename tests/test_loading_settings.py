"""Loading with broken config.json, generation_config.json and tokenizers: one sentence each, with both values."""

import json
import shutil
from types import SimpleNamespace

import pytest
from damaged import WEIGHTS, refusal
from llamas import LLAMA3_ROPE, SIZES, YARN_ROPE
from test_cli import llamba
from tiny import write_text

from llamba_kernels.distill import evaluate
from llamba_kernels.models import LlambaConfig, load_model, load_tokenizer


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe{}", b"\0"])
def test_a_config_that_is_no_json_object(copy_of, content):
    folder = copy_of("hybrid")
    (folder / "config.json").write_bytes(content)
    refusal(folder)


def test_a_model_of_another_type(copy_of):
    folder = copy_of("hybrid")
    for kind in ("gpt2", None, 3, [], {"llama": 1}):
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        kinds = "bamba, falcon_mamba, granitemoehybrid, jamba, llama, mamba, mamba2, mistral, nemotron_h"
        rule = f"load_model: path_or_id must hold a model of type {kinds} or llamba_hybrid; got "
        assert refusal(folder) == rule + str(kind)


LLAMA_SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
LLAMA_SIZES += ["num_key_value_heads", "head_dim", "max_position_embeddings"]
MAMBA_SIZES = ["num_heads", "head_dim", "d_state", "x_heads", "B_heads", "C_heads", "d_conv", "norm_group_size"]
MAMBA_SIZES = [f"mamba_{name}" for name in MAMBA_SIZES] + ["mamba_chunk_size"]
OPTIONAL = ["num_key_value_heads", "head_dim", *MAMBA_SIZES[:6], "mamba_norm_group_size"]
NO_SIZE = ["7", "x", -3, 0, 2.5, True, [], {}, [3], 10**12, 10**30]
TOKENS = ["bos_token_id", "eos_token_id", "pad_token_id"]
FLAGS = ["tie_word_embeddings", "attention_bias", "mlp_bias"]
OTHERS = {
    "rms_norm_eps": ["x", None, 0, -1e-6, True, [], float("nan"), float("inf")],
    "hidden_act": [None, 3, "", "no such", [], {}],
    "rope_parameters": ["x", 3, [], True, {"rope_type": "dynamic"}, {"rope_type": 3}, {"rope_type": "linear"}],
}
ROPES = [{"rope_theta": "x"}, {"rope_theta": 0}, {"rope_theta": True}, {"rope_theta": -1.0}]
OTHERS["rope_parameters"] += [{"rope_type": "default", **rope} for rope in ROPES]
OTHERS["rope_parameters"] += [{"rope_type": "linear", "rope_theta": 100.0, "factor": factor} for factor in ("2", 0, [])]
OTHERS["rope_parameters"] += [{"rope_type": "llama3", "rope_theta": 100.0, "factor": 2.0}]
OTHERS["rope_parameters"] += [LLAMA3_ROPE | {"low_freq_factor": 4.0}]  # as large as the high one
YARNS = {"beta_fast": "x", "beta_slow": -1.0, "attention_factor": "x", "partial_rotary_factor": 0.5, "rope_theta": 1.0}
LAYERS = ["x", 3, True, {}, [], ["mamba2"], ["mamba2"] * 4, ["mamba2", "attention", "mamba3"], ["mamba2", None, 3]]


@pytest.mark.parametrize("kind", ["hybrid", "llama"])
def test_config_fields_of_wrong_types_and_values(copy_of, kind):
    """What transformers' Llama accepts by itself is refused alike: the field's name is in every sentence."""
    folder = copy_of(kind)
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    wrong = {name: NO_SIZE for name in LLAMA_SIZES + (MAMBA_SIZES if kind == "hybrid" else [])}
    wrong = {name: values + [None] * (name not in OPTIONAL) for name, values in wrong.items()}
    wrong |= {name: ["x", "7", 2.5, True, {}, ["x"], [None]] for name in TOKENS}
    wrong |= {name: ["true", 0, 1, None, []] for name in FLAGS} | OTHERS
    if kind == "hybrid":  # what yarn may have transformers refuses in a Llama, in its own words
        wrong["layers"] = LAYERS
        wrong["rope_parameters"] = OTHERS["rope_parameters"] + [
            YARN_ROPE | {name: value} for name, value in YARNS.items()
        ]
    for name, values in wrong.items():
        for value in values:
            config.write_text(json.dumps({**settings, name: value}))
            assert name in refusal(folder), f"{name} = {value!r}: {refusal(folder)}"
    config.write_text(json.dumps(settings))
    load_model(folder)


def test_config_fields_that_disagree_name_both_values(copy_of):
    folder = copy_of("hybrid")
    settings = json.loads((folder / "config.json").read_text())
    for change, sentence in [
        ({"num_key_value_heads": 4}, "LlambaConfig: num_key_value_heads must divide num_attention_heads, 6; got 4"),
        ({"layers": ["mamba2"]}, "LlambaConfig: layers must name 3 layers; got ['mamba2']"),
        ({"head_dim": None, "hidden_size": 4}, "LlambaConfig: head_dim must be even and positive; got 0"),
        ({"pad_token_id": 97}, "LlambaConfig: pad_token_id must be below vocab_size, 97; got 97"),
        ({"mamba_d_state": "16"}, "LlambaConfig: mamba_d_state must be an int or null; got '16'"),
        ({"attention_bias": "no"}, "LlambaConfig: attention_bias must be true or false; got 'no'"),
        ({"eos_token_id": "2"}, "LlambaConfig: eos_token_id must be an int or a list of ints or null; got '2'"),
        ({"vocab_size": 98}, None),
    ]:
        (folder / "config.json").write_text(json.dumps(settings | change))
        got = refusal(folder)
        embedding = f"must have shape (98, 48) as config.json says; got (97, 48) in {folder}"
        assert got == sentence if sentence else got.endswith(embedding)


def test_a_config_in_python_says_type_error():
    with pytest.raises(TypeError) as error:
        LlambaConfig(**{**SIZES, "hidden_size": "48"})
    assert str(error.value) == "LlambaConfig: hidden_size must be an int; got '48'"


def test_a_broken_generation_config(copy_of):
    """transformers goes on with other end-of-sequence tokens than the model's."""
    folder = copy_of("hybrid")
    path = folder / "generation_config.json"
    for text in ("", "{", "[]", "null", "3"):
        path.write_text(text)
        assert refusal(folder).startswith(f"load_model: generation_config.json of {folder} must ")
    for tokens in ("x", 2.5, True, {}, [1, "x"]):
        path.write_text(json.dumps({"eos_token_id": tokens}))
        rule = f"load_model: eos_token_id in generation_config.json of {folder} must be an int or a list of ints; got "
        assert refusal(folder) == f"{rule}{tokens!r}"
    for tokens in (5, [5, 6], None):
        path.write_text(json.dumps({"eos_token_id": tokens}))
        assert load_model(folder).generation_config.eos_token_id == tokens
    path.unlink()
    load_model(folder)


def test_a_folder_without_tokenizer(saved):
    assert "load_tokenizer: path_or_id must hold a tokenizer; got " in refusal(saved / "hybrid", load_tokenizer)


def test_broken_tokenizers(copy_of):
    folder = copy_of("teacher")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        content = path.read_bytes()
        for damaged in (b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", content[: len(content) // 2]):
            path.write_bytes(damaged)
            sentence = refusal(folder, load_tokenizer)
            assert sentence.startswith(f"load_tokenizer: path_or_id must hold a tokenizer; got {folder}: ")
        path.write_bytes(content)
    load_tokenizer(folder)


def test_a_tokenizer_with_more_tokens_than_the_model(copy_of, tmp_path):
    """Refused where the two meet, before any text: in the command line and in every stage."""
    folder, teacher = copy_of("hybrid"), copy_of("teacher")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher / name, folder)
    model, found = load_model(folder), load_tokenizer(folder).vocab_size
    rule = "load_tokenizer: path_or_id must hold a tokenizer of at most the model's vocab_size = 97 tokens; "
    sentence = f"{rule}got {found} in {folder}"
    assert refusal(folder, lambda path: load_tokenizer(path, model)) == sentence
    assert refusal(folder, lambda path: evaluate(path, write_text(tmp_path))) == sentence
    failed = llamba("generate", folder, "the state")
    assert (failed.returncode, failed.stdout, failed.stderr) == (1, "", f"llamba: {sentence}\n")


def test_an_added_token_beyond_the_model_is_none_of_its_business(copy_of):
    """As in the many fine-tuned Llamas with a padding token of their own."""
    folder = copy_of("teacher")
    tokenizer = load_tokenizer(folder)
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=len(tokenizer)))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert len(load_tokenizer(folder, model)) == model.config.vocab_size + 1


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "generation_config.json", "tokenizer.json"])
def test_the_command_line_says_it_in_one_line(copy_of, name):
    folder = copy_of("teacher")
    path = folder / name
    path.write_bytes(path.read_bytes()[:100])
    failed = llamba("generate", folder, "the state")
    assert failed.returncode == 1 and failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert line.startswith(("llamba: load_model: ", "llamba: load_tokenizer: ")) and str(folder) in line
