"""Loading paths and weights that are missing, damaged or do not fit: one sentence each, with both values."""

import json
import random

import pytest
import torch
from damaged import INDEX, WEIGHTS, refusal, rewrite
from helpers import assert_bitwise
from llamas import SIZES
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from llamba_kernels.models import load_model, load_tokenizer


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
