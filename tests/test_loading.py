"""Loading what is missing, damaged or does not fit: one sentence each, with both values where two disagree."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_bitwise
from llamas import HYBRID, SIZES
from safetensors.torch import load_file, save_file
from test_cli import llamba
from tiny import write_teacher, write_text
from transformers import LlamaConfig, LlamaForCausalLM

from llamba_kernels.distill import evaluate
from llamba_kernels.models import LlambaConfig, LlambaForCausalLM, load_model, load_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One folder per kind, only read: a hybrid, the same in shards, a plain Llama, a Llama with a tokenizer."""
    root = tmp_path_factory.mktemp("loading")
    torch.manual_seed(0)
    hybrid = LlambaForCausalLM(LlambaConfig(**HYBRID))
    hybrid.save_pretrained(root / "hybrid")
    hybrid.save_pretrained(root / "shards", max_shard_size="100KB")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(root / "llama")
    write_teacher(root / "teacher")
    return root


@pytest.fixture
def copy_of(saved, tmp_path):
    def copy(kind):
        return Path(shutil.copytree(saved / kind, tmp_path / kind))

    return copy


def refusal(folder, load=load_model):
    """The sentence, which must be one line of a ValueError."""
    with pytest.raises(ValueError) as error:
        load(folder)
    assert type(error.value) is ValueError
    sentence = str(error.value)
    assert sentence.isprintable() and " must " in sentence and "; got " in sentence, sentence
    assert sentence.startswith(("load_model: ", "load_tokenizer: ", "LlambaConfig: ")), sentence
    return sentence


def rewrite(folder, **changed):
    """Its weights with other tensors: None leaves one out, dots in names are written as double underscores."""
    tensors = load_file(folder / WEIGHTS) | {name.replace("__", "."): tensor for name, tensor in changed.items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "wrong, kind, got",
    [
        ("absent", ValueError, "must be a folder or a hub id owner/name; got absent"),
        ("", ValueError, "must be a folder or a hub id owner/name; got ''"),
        ("two\nlines", ValueError, r"must be a folder or a hub id owner/name; got 'two\nlines'"),
        ("\0", ValueError, r"must be a folder or a hub id owner/name; got '\x00'"),
        (None, TypeError, "must be a str or a Path; got NoneType"),
        (b"model", TypeError, "must be a str or a Path; got bytes"),
    ],
)
def test_what_is_no_path(wrong, kind, got):
    for load in (load_model, load_tokenizer):
        with pytest.raises(kind) as error:
            load(wrong)
        assert str(error.value) == f"{load.__name__}: path_or_id {got}"


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load, needed in ((load_model, "config.json"), (load_tokenizer, "a tokenizer")):
        sentence = refusal("nobody/nothing", load)
        assert sentence.startswith(f"{load.__name__}: path_or_id must hold {needed}; got nobody/nothing: ")


def test_a_file_is_no_folder(saved):
    path = saved / "hybrid" / WEIGHTS
    assert refusal(path) == f"load_model: path_or_id must be a folder or a hub id owner/name; got {path}"


@pytest.mark.parametrize("dtype", [torch.int8, "float32", "auto", None])
def test_dtypes_that_are_refused(saved, dtype):
    with pytest.raises(TypeError) as error:
        load_model(saved / "hybrid", dtype)
    rule = "load_model: dtype must be a torch dtype, float32, bfloat16, float16 or float64; got "
    assert str(error.value) == rule + str(dtype)


@pytest.mark.parametrize(
    "kind, name, got",
    [
        ("hybrid", "config.json", "path_or_id must hold a model's config.json; got {folder}, which has none"),
        ("hybrid", WEIGHTS, "path_or_id must hold readable weights; got {folder}: Error no file named model.safetens"),
        ("shards", INDEX, "path_or_id must hold readable weights; got {folder}: Error no file named model.safetens"),
        ("shards", "model-00002-of-00004.safetensors", "{folder} must hold every file of " + INDEX + "; got no {name}"),
    ],
)
def test_missing_files(copy_of, kind, name, got):
    folder = copy_of(kind)
    (folder / name).unlink()
    assert refusal(folder).startswith("load_model: " + got.format(folder=folder, name=name))


def test_a_truncated_file_is_refused_wherever_it_ends(copy_of):
    for kind, name in (("hybrid", WEIGHTS), ("shards", "model-00003-of-00004.safetensors")):
        path = copy_of(kind) / name
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        for length in (0, 1, 8, 9, header // 2, header, header + 1, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            assert refusal(path.parent).startswith(f"load_model: {path} must hold readable weights; got ")
        path.write_bytes(content)
        load_model(path.parent)


def test_200_damaged_files_are_refused_or_load_with_the_bits_given(copy_of):
    """A flipped bit of a weight is a weight like another, unless it makes it a NaN or infinite."""
    folder, rng = copy_of("hybrid"), random.Random(0)
    path, loaded, refused = folder / WEIGHTS, 0, 0
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(200):
        damaged = bytearray(content)
        start, end = rng.choice([(0, 8), (8, header), (8, header), (header, len(content))])
        for _ in range(rng.choice([1, 1, 3])):
            damaged[rng.randrange(start, end)] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
        path.write_bytes(damaged)
        try:
            model = load_model(folder)
        except ValueError:
            assert refusal(folder).startswith("load_model: ")
            refused += 1
        else:
            given = load_file(path)
            assert model.state_dict().keys() == given.keys()
            for name, parameter in model.state_dict().items():
                assert_bitwise(parameter, given[name])
            loaded += 1
    assert refused > 100 and loaded > 20


@pytest.mark.parametrize(
    "change, got",
    [
        ("{", f"{INDEX} of {{folder}} must be JSON; got Expecting property name"),
        ("[]", f"{INDEX} of {{folder}} must hold a JSON object; got list"),
        ({"weight_map": None}, f"{INDEX} of {{folder}} must hold a weight_map of file names; got None"),
        ({"weight_map": {}}, f"{INDEX} of {{folder}} must hold a weight_map of file names; got {{}}"),
        ({"weight_map": {"a": 3}}, f"{INDEX} of {{folder}} must hold a weight_map of file names; got {{'a': 3}}"),
        ({"weight_map": {"a": "../a"}}, f"{INDEX} of {{folder}} must hold a weight_map of file names; got {{'a': '../"),
        ({"weight_map": {"a": "b"}}, f"{{folder}} must hold every file of {INDEX}; got no b"),
        ({"metadata": None}, f"{INDEX} of {{folder}} must hold metadata; got None"),
    ],
)
def test_damaged_indices(copy_of, change, got):
    folder = copy_of("shards")
    text = change if isinstance(change, str) else json.dumps(json.loads((folder / INDEX).read_text()) | change)
    (folder / INDEX).write_text(text)
    assert refusal(folder).startswith("load_model: " + got.replace("{folder}", str(folder)).replace("{{}}", "{}"))


def test_shards_give_the_bits_of_one_file(saved):
    whole, shards = (load_model(saved / kind).state_dict() for kind in ("hybrid", "shards"))
    for name, parameter in whole.items():
        assert_bitwise(shards[name], parameter)


def test_every_parameter_has_its_shape_checked(saved, copy_of):
    folder = copy_of("hybrid")
    original = (folder / WEIGHTS).read_bytes()
    for name, tensor in load_file(saved / "hybrid" / WEIGHTS).items():
        wanted, found = tuple(tensor.shape), (*tensor.shape[:-1], tensor.shape[-1] + 1)
        rewrite(folder, **{name: torch.ones(found)})
        sentence = f"load_model: {name} must have shape {wanted} as config.json says; got {found} in {folder}"
        assert refusal(folder) == sentence
        (folder / WEIGHTS).write_bytes(original)


def test_missing_and_surplus_parameters(copy_of):
    folder = copy_of("hybrid")
    rewrite(folder, model__layers__1__self_attn__q_proj__bias=torch.ones(48))
    rule = f"load_model: {folder} must hold only parameters that config.json has a place for; got "
    assert refusal(folder) == rule + "model.layers.1.self_attn.q_proj.bias"
    rewrite(folder, model__layers__1__self_attn__q_proj__bias=None, model__norm__weight=None, lm_head__weight=None)
    assert refusal(folder) == f"load_model: {folder} must hold every parameter; got no lm_head.weight and 1 others"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_quantised_are_refused(copy_of, dtype):
    folder = copy_of("hybrid")
    name = "model.layers.0.mamba.in_proj.weight"
    rewrite(folder, **{name: load_file(folder / WEIGHTS)[name].to(dtype)})
    stored = {torch.int8: "I8", torch.int32: "I32", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3"}[dtype]
    assert refusal(folder) == f"load_model: {name} must be one of F64, F32, F16, BF16; got {stored} in {folder}"


def test_weights_of_any_float_dtype_load(copy_of):
    folder = copy_of("hybrid")
    tensors = load_file(folder / WEIGHTS)
    for stored in (torch.float64, torch.bfloat16, torch.float16):
        rewrite(folder, **{name: tensor.to(stored) for name, tensor in tensors.items()})
        for name, parameter in load_model(folder).state_dict().items():
            assert_bitwise(parameter, tensors[name].to(stored).float())


def test_weights_that_are_not_finite(copy_of):
    folder = copy_of("hybrid")
    name = "model.layers.1.self_attn.k_proj.weight"
    good = load_file(folder / WEIGHTS)[name]
    for values in ([torch.nan], [torch.inf], [torch.inf, -torch.inf]):
        bad = good.clone()
        bad[3, : len(values)] = torch.tensor(values)
        rewrite(folder, **{name: bad})
        rule = f"load_model: {name} must be finite in float32; got {len(values)} values that are not in {folder}"
        assert refusal(folder) == rule
    huge = good.clone()
    huge[0, :2] = 3e38  # finite, and so is the tensor, though its sum is not
    rewrite(folder, **{name: huge})
    assert_bitwise(load_model(folder).model.layers[1].self_attn.k_proj.weight.detach(), huge)
    with pytest.raises(ValueError, match="must be finite in float16; got 2 values"):
        load_model(folder, torch.float16)


def test_what_older_llamas_store_twice_is_let_through(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).save_pretrained(tmp_path)
    tokens = torch.arange(1, 10)[None]
    expected = load_model(tmp_path)(tokens).logits
    embedding = load_file(tmp_path / WEIGHTS)["model.embed_tokens.weight"]
    rewrite(tmp_path, **{"lm_head.weight": embedding, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.equal(load_model(tmp_path)(tokens).logits, expected)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe{}", b"\0"])
def test_a_config_that_is_no_json_object(copy_of, content):
    folder = copy_of("hybrid")
    (folder / "config.json").write_bytes(content)
    refusal(folder)


def test_a_model_of_another_type(copy_of):
    folder = copy_of("hybrid")
    for kind in ("gpt2", None, 3, [], {"llama": 1}):
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        rule = "load_model: path_or_id must hold a model of type llama or llamba_hybrid; got "
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
    if kind == "hybrid":
        wrong["layers"] = LAYERS
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
