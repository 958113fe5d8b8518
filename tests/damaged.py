"""Model folders to damage, and the one sentence that a damaged one must give."""

from pathlib import Path

import pytest
import torch
from llamas import HYBRID, SIZES
from safetensors.torch import load_file, save_file
from tiny import write_teacher
from transformers import LlamaConfig, LlamaForCausalLM

from llamba_kernels.models import LlambaConfig, LlambaForCausalLM, load_model

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def write_models(root: Path) -> Path:
    """A folder of each kind: hybrid, the same in shards, llama, teacher (a Llama with a tokenizer)."""
    torch.manual_seed(0)
    hybrid = LlambaForCausalLM(LlambaConfig(**HYBRID))
    hybrid.save_pretrained(root / "hybrid")
    hybrid.save_pretrained(root / "shards", max_shard_size="100KB")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(root / "llama")
    write_teacher(root / "teacher")
    return root


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
    """Its weights with other tensors: None leaves one out; double underscores are the dots of a name."""
    tensors = load_file(folder / WEIGHTS) | {name.replace("__", "."): tensor for name, tensor in changed.items()}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
