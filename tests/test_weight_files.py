"""Pickled and sharded weights, what is wrong with them, and how much memory reading them takes."""

import json
import subprocess
import sys

import pytest
import torch
from damaged import INDEX, WEIGHTS, refusal
from foreign import make_foreign
from helpers import assert_bitwise
from originals import write
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from llamba_kernels.models import checkpoint, load_model

BIN = "pytorch_model.bin"
NAME = "backbone.layers.1.mixer.A_log"


@pytest.fixture
def mamba(tmp_path):
    """A folder with a pickled Mamba, and what is in it."""
    make_foreign("mamba").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    torch.save(tensors, tmp_path / BIN)
    return tmp_path, tensors


def save_shards(folder, shards):
    """As transformers names pickled shards."""
    for file, tensors in shards.items():
        torch.save(tensors, folder / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{BIN}.index.json").write_text(json.dumps(index))


def test_pickled_shards_and_strides_give_the_same_bits(mamba):
    folder, tensors = mamba
    whole = load_model(folder).state_dict()
    (folder / BIN).unlink()
    strided = {name: t.T.contiguous().T if t.dim() == 2 else t for name, t in tensors.items()}
    files = dict.fromkeys(f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3))
    parts = {file: dict(list(strided.items())[i::3]) for i, file in enumerate(files)}
    save_shards(folder, parts)
    for name, parameter in load_model(folder).state_dict().items():
        assert_bitwise(parameter, whole[name])
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    missing = f"load_model: {folder} must hold every file of {BIN}.index.json; got no pytorch_model-00002-of-00003.bin"
    assert refusal(folder) == missing


def test_what_a_pickled_file_may_hold(mamba):
    folder, tensors = mamba
    for content, got in [
        ([1, 2], "must hold dense tensors by name; got list"),
        ({"model": tensors}, "must hold dense tensors by name; got dict"),
        ({**tensors, NAME: None}, "must hold dense tensors by name; got NoneType"),
        ({**tensors, NAME: tensors[NAME].to_sparse()}, "must hold dense tensors by name; got sparse_coo"),
        ({**tensors, NAME: print}, "must hold readable weights; got "),  # nothing but tensors is unpickled
    ]:
        torch.save(content, folder / BIN)
        assert refusal(folder).startswith(f"load_model: {folder / BIN} {got}")
    for wrong, got in [
        ({NAME: torch.zeros(96, 33)}, f"{NAME} must have shape (96, 32) as config.json says; got (96, 33) in "),
        ({NAME: torch.zeros(96, 32).int()}, f"{NAME} must be one of F64, F32, F16, BF16; got int32 in "),
        (
            {NAME: torch.full((96, 32), torch.nan)},
            "model.layers.1.mamba.A_log must be finite in float32; got 3072 values",
        ),
        (
            {"backbone.more": torch.zeros(1)},
            f"{folder} must hold only parameters that config.json has a place for; got ",
        ),
        (
            {"lm_head.weight": torch.zeros(97, 48)},
            "lm_head.weight must equal the embedding, as tie_word_embeddings says",
        ),
    ]:
        torch.save({**tensors, **wrong}, folder / BIN)
        assert refusal(folder).startswith(f"load_model: {got}")
    torch.save({name: t for name, t in tensors.items() if name != NAME}, folder / BIN)
    assert refusal(folder) == f"load_model: {folder} must hold every parameter; got no {NAME}"


def test_a_truncated_pickled_file(mamba):
    folder, _ = mamba
    content = (folder / BIN).read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        (folder / BIN).write_bytes(content[:length])
        assert refusal(folder).startswith(f"load_model: {folder / BIN} must hold readable weights; got ")


def test_a_tensor_in_two_shards(mamba):
    folder, tensors = mamba
    (folder / BIN).unlink()
    for file in ("a.safetensors", "b.safetensors"):
        save_file({NAME: tensors[NAME]}, folder / file)
    index = {"metadata": {}, "weight_map": {NAME: "a.safetensors", "other": "b.safetensors"}}
    (folder / INDEX).write_text(json.dumps(index))
    got = f"got it in {folder / 'b.safetensors'} and in {folder / 'a.safetensors'}"
    assert refusal(folder) == f"load_model: {NAME} must be stored once; {got}"


def test_a_tied_head_is_compared_a_block_at_a_time(tmp_path, monkeypatch):
    """A whole second embedding would be most of a small model again."""
    *_, parameters = write(tmp_path, "state_spaces mamba1")
    sizes, read = [], checkpoint.Weights._read
    monkeypatch.setattr(checkpoint, "BLOCK", 1000)
    monkeypatch.setattr(checkpoint.Weights, "_read", lambda *given: (sizes.append(len(given[2])), read(*given)))
    load_model(tmp_path)
    assert sizes[-20:] == [250] * 19 + [104 * 48 - 19 * 250]
    load_model(tmp_path, torch.bfloat16)
    assert sizes[-10:] == [500] * 9 + [104 * 48 - 9 * 500]
    other = parameters["lm_head.weight"].clone()
    other[-1, -1] += 1
    torch.save({**parameters, "lm_head.weight": other}, tmp_path / BIN)
    assert refusal(tmp_path).startswith("load_model: lm_head.weight must equal the embedding")


def test_the_embedding_under_its_older_name(tmp_path):
    make_foreign("mamba").save_pretrained(tmp_path)
    usual = load_model(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["backbone.embedding.weight"] = tensors.pop("backbone.embeddings.weight")
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    model = load_model(tmp_path)
    assert model.config.origin["renames"] == [["backbone.embeddings.", "backbone.embedding."]]
    assert_bitwise(model.model.embed_tokens.weight.detach(), usual.model.embed_tokens.weight.detach())


def test_a_hub_id_is_read_by_way_of_the_cache(tmp_path, monkeypatch):
    """Each file is asked for by its name, pickled ones only after the others."""
    write(tmp_path, "state_spaces mamba2")
    asked = []

    def cached_file(source, name, **options):
        asked.append(name)
        return str(tmp_path / name) if (tmp_path / name).is_file() else None

    monkeypatch.setattr("llamba_kernels.models.checkpoint.cached_file", cached_file)
    model = load_model("state-spaces/mamba2-tiny")
    assert model.config.layers == ["mamba2"] * 3 and model.config.vocab_size == 112
    assert asked.index("config.json") < asked.index(WEIGHTS) < asked.index(INDEX) < asked.index(BIN)


def test_mamba_in_llama_is_never_taken_for_its_teacher(tmp_path):
    """Nor is one without its mamba_config.json, whose mixers have no place in a Llama."""
    write(tmp_path, "mamba_in_llama mamba2")
    assert load_model(tmp_path).config.layers == ["mamba2", "attention", "mamba2"]
    (tmp_path / "mamba_config.json").unlink()
    assert "must hold every parameter; got no model.layers.0.self_attn.k_proj.weight" in refusal(tmp_path)


PEAK = """
import sys, torch
from llamba_kernels.models import load_model
def memory(field):  # of this program alone; what rusage tells includes the parent that started it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
load_model(sys.argv[3])
before = memory("VmRSS")
model = load_model(sys.argv[1], getattr(torch, sys.argv[2]))
size = sum(parameter.nbytes for parameter in model.parameters())
print((memory("VmHWM") - before) / size, size)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_there_are_never_two_copies_of_the_weights(kind, dtype, tmp_path):
    """500 MB of fp32, in a fresh process: the peak of its resident memory, mapped files included."""
    sizes = {"vocab_size": 4000, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
    config = LlamaConfig(**sizes, num_hidden_layers=8, num_key_value_heads=4, tie_word_embeddings=True)
    config.save_pretrained(tmp_path / "large")
    shapes = {"model.embed_tokens.weight": (4000, 1024), "model.norm.weight": (1024,)}
    for i in range(8):
        layer = {f"mlp.{name}_proj": (4096, 1024) for name in ("gate", "up")} | {"mlp.down_proj": (1024, 4096)}
        layer |= {f"self_attn.{name}_proj": (1024 if name in "qo" else 256, 1024) for name in "qkvo"}
        layer |= {name: (1024,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    tensors = {name: torch.full(shape, 0.01) for name, shape in shapes.items()}
    if kind == "bin":
        torch.save(tensors, tmp_path / "large" / BIN)
    else:
        save_file(tensors, tmp_path / "large" / WEIGHTS, metadata={"format": "pt"})
    make_foreign("llama").save_pretrained(tmp_path / "small")  # what loading any model brings into memory
    command = [sys.executable, "-c", PEAK, tmp_path / "large", dtype, tmp_path / "small"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ratio, size = map(float, done.stdout.split())
    assert size > (5e8 if dtype == "float32" else 2.5e8) and ratio <= 1.25, ratio
    print(f"{kind}, {dtype}: peak {ratio:.3f} of the weights' {size / 1e6:.0f} MB")
