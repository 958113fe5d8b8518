"""Published models by name: their parameters' names, shapes and number on the meta device; runs with random weights."""

import json
from math import prod

import pytest
import torch
from test_cli import llamba
from transformers import AutoConfig, AutoModelForCausalLM

from llamba_kernels import decode_bench, memory
from llamba_kernels.models import families
from llamba_kernels.models.presets import BAMBA, PRESETS, preset_config
from llamba_kernels.models.random_weights import BLOCK, random_model

REFUSED = "jamba-v0.1"
IN_LLAMA = [name for name in PRESETS if "-in-llama-" in name]
OTHERS = [name for name in PRESETS if name not in (*IN_LLAMA, REFUSED)]


@pytest.mark.parametrize("name", OTHERS)
def test_names_and_shapes_are_those_of_transformers(name):
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PRESETS[name]))
    stored = ("model.", "backbone.") if name == "mamba2-hybrid-8b" else ("", "")  # transformers renames it as it loads
    parameters = theirs.named_parameters()  # a tied lm_head is named once
    expected = {name.replace(*stored, 1): tuple(each.shape) for name, each in parameters}
    assert families.foreign_shapes(preset_config(name)) == expected


# The tables of arXiv 2408.15237's released checkpoints, for hidden size d, intermediate size i and h heads of 128; of
# keys and values there are always 8.
def mlp(d, i):
    norms = {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
    return norms | {"mlp.gate_proj.weight": (i, d), "mlp.up_proj.weight": (i, d), "mlp.down_proj.weight": (d, i)}


def attention(d, h):
    shapes = {"q_proj": (128 * h, d), "k_proj": (1024, d), "v_proj": (1024, d), "o_proj": (d, 128 * h)}
    return {f"self_attn.{name}.weight": shape for name, shape in shapes.items()}


def mamba1(d, h):
    shapes = {"in_proj_x": (1024, d), "B_proj": (1024, d), "C_proj": (d, d), "out_proj": (d, d), "in_proj_z": (d, d)}
    shapes |= {"dt_proj_down": (d // 16, d), "dt_proj": (d, d // 16), "conv1d": (d, 1, 4)}
    others = {"dt_proj.bias": (d,), "conv1d.bias": (d,), "A_log": (d, 16), "D": (d,)}
    return {f"mamba.{name}.weight": shape for name, shape in shapes.items()} | {
        f"mamba.{k}": v for k, v in others.items()
    }


def mamba2(d, h):
    shapes = {"in_proj.weight": (d + 1024 + 1024 + d + h, d), "conv1d.weight": (d + 2048, 1, 4)}
    shapes |= {"conv1d.bias": (d + 2048,), "dt_bias": (h,), "A_log": (h,), "D": (h,)}
    return {f"mamba.{k}": v for k, v in (shapes | {"norm.weight": (d,), "out_proj.weight": (d, d)}).items()}


KEPT = {"50": 2, "25": 4, "12.5": 8, "0": 99}  # every so-manyth layer is attention, the last of so many


@pytest.mark.parametrize("name", IN_LLAMA)
def test_names_and_shapes_are_those_of_the_released_mamba_in_llama(name):
    kind, _, _, size, left = name.split("-")
    layers, d, i, h = (32, 4096, 14336, 32) if size == "8b" else (28, 3072, 8192, 24)
    expected = {"model.embed_tokens.weight": (128256, d), "model.norm.weight": (d,)}
    expected |= {"lm_head.weight": (128256, d)} if size == "8b" else {}
    for n in range(layers):
        mixer = (
            attention if (n + 1) % KEPT[left.removeprefix("att")] == 0 else {"mamba1": mamba1, "mamba2": mamba2}[kind]
        )
        expected |= {f"model.layers.{n}.{each}": shape for each, shape in (mlp(d, i) | mixer(d, h)).items()}
    assert families.foreign_shapes(preset_config(name)) == expected


# In units of 1e9: 7.27 and 9.78 as published with Falcon-Mamba and Bamba, the others as commonly quoted or named.
PUBLISHED = {
    "mamba-130m": "0.13",
    "mamba-790m": "0.79",
    "mamba-2.8b": "2.8",
    "mamba-7b-rw": "7",
    "falcon-mamba-7b": "7.27",
    "bamba-9b-v1": "9.78",
    "bamba-9b-v2": "9.78",
    "zephyr-7b": "7.24",
    "llama-3-8b": "8.03",
    "llama-3.1-8b": "8.03",
    "llama-3.2-3b": "3.21",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name):
    billions, digits = parameters(name) / 1e9, len(PUBLISHED[name].partition(".")[2])
    assert f"{billions:.{digits}f}" == PUBLISHED[name]


def parameters(name):
    return sum(map(prod, families.foreign_shapes(preset_config(name)).values()))


def test_as_many_bytes_as_the_released_files():
    """MambaInLlama_0_50's pytorch_model.bin, in fp32, has 33.3 GB; Bamba-9B-v2's model.safetensors, in bf16, 19.6."""
    assert f"{4e-9 * parameters('mamba1-in-llama-8b-att50'):.1f}" == "33.3"
    assert f"{2e-9 * parameters('bamba-9b-v2'):.1f}" == "19.6"


def test_what_is_refused():
    with pytest.raises(
        ValueError, match="^preset jamba-v0.1: num_experts must be 1, as mixtures of experts are not run"
    ):
        preset_config(REFUSED)
    with pytest.raises(ValueError, match="^preset: name must be one of mamba-130m, .*, llama-3.2-3b; got 'mamba'$"):
        preset_config("mamba")


TINY = BAMBA | {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_indices": [1],
    "attn_rotary_emb": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    return preset_config("tiny")


def test_random_weights(tiny):
    """Seeded, of the initialiser's spread, no row another's copy; the rest as when training starts."""
    tiny.vocab_size = BLOCK // 20  # an embedding of three blocks and more
    model, same, other = (random_model(tiny, torch.bfloat16, seed).state_dict() for seed in (0, 0, 1))
    for name, value in model.items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, same[name])
        fixed = value.dim() == 1 and not name.endswith(("A_log", "dt_bias"))
        assert torch.equal(value, other[name]) == fixed, name
        if name.endswith((".bias", "norm.weight")):
            assert bool((value == (0 if name.endswith("bias") else 1)).all())
        elif value.dim() > 1:
            assert value.float().std().item() == pytest.approx(tiny.initializer_range, rel=0.1)
            assert len(value.flatten(1).unique(dim=0)) == len(value)
    assert model["model.layers.0.mamba.A_log"].float().exp().max() <= 16.1


def test_bench_of_a_preset(tiny, tmp_path):
    """Every draft and window says the same; what it takes is said first, and was counted right."""
    file = tmp_path / "bench.json"
    arguments = ("--windows", "1,3", "--prompts", 2, "--max-new-tokens", 8, "--dtype", "bfloat16", "--json", file)
    for draft in ("lookup", "first:1"):
        done = llamba("bench", "--preset", "tiny", "--draft", draft, *arguments)
        assert done.returncode == 0, done.stderr
        weights = 2 * sum(parameter.numel() for parameter in random_model(tiny).parameters())
        first = done.stdout.splitlines()[0]
        assert (
            first.startswith(f"tiny: {weights // 2:,} parameters; weights {weights:,}, cache ") and "workspace" in first
        )
        rows = json.loads(file.read_text())["rows"]
        assert [row["window"] for row in rows] == [1, 3] and all(row["identical"] for row in rows)


def test_a_preset_that_does_not_fit_is_refused_before_its_memory_is_asked_for(tiny, monkeypatch):
    monkeypatch.setattr(decode_bench, "random_model", None)
    needed = sum(memory.decoding_bytes(tiny, 64 + 100, 8, torch.float32).values())
    monkeypatch.setattr(decode_bench, "available_bytes", lambda: needed - 1)
    refused = llamba("bench", "--preset", "tiny")
    assert refused.returncode == 1 and refused.stdout.startswith("tiny: ")
    rule = f"bench: preset must fit the {needed - 1:,} bytes of memory that are available; got tiny in float32, which"
    assert refused.stderr == f"llamba: {rule} takes {needed:,}\n"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((), "bench: exactly one of a model and --preset must be given; got None and None"),
        (("x", "--preset", "tiny"), "bench: exactly one of a model and --preset must be given; got x and tiny"),
        (
            ("--preset", "tiny", "--draft", "a/model"),
            "bench: draft must be lookup, none or first:N with a preset, which has no tokenizer; got a/model",
        ),
        (
            ("--preset", "tiny", "--data", "x"),
            "bench: data must be left out with --preset, whose prompts are random; got x",
        ),
        (("--preset", "tiny", "--dtype", "float8"), "dtype must be float32 or bfloat16; got float8"),
    ],
)
def test_refusals(tiny, arguments, sentence):
    refused = llamba("bench", *arguments)
    assert refused.returncode == 1 and refused.stderr == f"llamba: {sentence}\n"
