"""Write a model in another project's layout, for its own code to load.

`export_model(model, folder)` undoes `load_model`: what was loaded from a family's checkpoint and not rebuilt is written
with that checkpoint's names, shapes, dtypes and bits. `layout=` writes one of our own hybrids for other engines.
Mixers of attention-initialised Mamba-2 share heads of x and B among heads of the state (GQA), and their gated norm's
RMS is over one head. Every stock Mamba-2 layout has one x head per head of the state, and B, C and the RMS in groups;
with as many groups as heads, and the rows of x and B in in_proj and conv1d repeated, it computes the same function.
What differs is the rest of the layer:

mamba_in_llama    the authors' own code: exact as it is, nothing is repeated.
granitemoehybrid  transformers, vLLM, SGLang: exact. It has full RoPE ("rope"), SwiGLU without biases, RMSNorms and
                  residuals in the same places, and the attention's scale as attention_multiplier. llama.cpp converts
                  it without RoPE in hybrids, so that there it is exact only for models without attention layers.
bamba             llama.cpp (attn_rotary_emb is the whole head) and transformers >= 5 (partial_rotary_factor 1): exact.
                  Bamba's configuration before transformers 5 fixes the factor at one half, so that engines that still
                  use that one, as vLLM did, rotate half of each head: not exact there if there are attention layers.
nemotron_h, mamba2  hold no SwiGLU or no attention with RoPE: represent no such hybrid.

Logits were compared in transformers (tests/test_export.py); of the other engines the loaders were read, not run.

Both engines' layouts want heads of hidden_size / num_attention_heads channels, d_inner a multiple of hidden_size, and
one epsilon for all norms; anything else is refused by the name of the field. The price of repeating: an 8B hybrid's
in_proj grows from 10,272 rows to 16,416.
"""

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from .models import LlambaConfig, LlambaForCausalLM, families, load_model
from .models.checkpoint import FLOATS, NAMES
from .models.families import bamba, granite, mamba_in_llama
from .models.families.layout import Rule
from .models.loading import stored_dtype

LAYOUTS = {module.NAME: module for module in (mamba_in_llama, granite, bamba)}
FORMATS = ("safetensors", "bin")
COMPANIONS = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*")
COMPANIONS += ("*.model", "generation_config.json")
SHARD = 5 * 10**9  # bytes, as transformers' own
# What changes neither a tensor nor a logit, or is not what a family's config.json tells of.
INERT = {"origin", "use_cache", "initializer_range", "mamba_chunk_size", "max_position_embeddings"}
INERT |= {"bos_token_id", "eos_token_id", "pad_token_id"}


def export_model(
    model: LlambaForCausalLM,
    folder: str | Path,
    *,
    layout: str | None = None,
    format: str | None = None,
    source: str | Path | None = None,
) -> None:
    """Write `model` to the new `folder` in the layout that it was loaded from, or in `layout`.

    Args:
        layout: "mamba_in_llama", "granitemoehybrid" or "bamba", for a model of Mamba-2 and attention layers; see above.
        format: "safetensors", in shards of at most 5 GB, or "bin", one pickled file; default that of the checkpoint.
        source: a folder whose tokenizer and generation settings are copied.

    A tensor is written in the dtype that it was stored in, unless the model's own is narrower; with `layout` in the
    model's. Raises ValueError naming the field that the layout has no place for.
    """
    from .distill.folders import check_absent, new_folder  # here, because it brings all of distillation

    if format not in (None, *FORMATS):
        raise ValueError(f"export_model: format must be safetensors or bin; got {format}")
    if source is not None and not Path(source).is_dir():
        raise ValueError(f"export_model: source must be a folder; got {source}")
    check_absent("export_model", folder)
    target, read = _original(model) if layout is None else _translated(model, layout)
    entries = _entries(target, model.dtype, read)
    with new_folder(folder, "export_model") as staging:
        _write_settings(target.origin, model.dtype, staging)
        if (format or target.origin.get("format", "safetensors")) == "bin":
            torch.save({entry.name: entry.tensor() for entry in entries}, staging / WEIGHTS_NAME)
        else:
            _write_shards(entries, staging)
        companions = [] if source is None else [path for each in COMPANIONS for path in Path(source).glob(each)]
        for path in companions:
            shutil.copy(path, staging)
        if not any(path.name == "generation_config.json" for path in companions):
            model.generation_config.save_pretrained(staging)


def export_checkpoint(
    path_or_id: str | Path, folder: str | Path, *, layout: str | None = None, format: str | None = None
) -> None:
    """`export_model` of a checkpoint in the dtype that holds all of its values, a folder's tokenizer copied."""
    model = load_model(path_or_id, stored_dtype(path_or_id))
    source = path_or_id if Path(path_or_id).is_dir() else None
    export_model(model, folder, layout=layout, format=format, source=source)


@dataclass(frozen=True)
class Entry:
    """A tensor to write: joined and converted when it is asked for."""

    name: str
    parts: tuple[Callable[[], Tensor], ...]
    dtype: torch.dtype
    size: int  # bytes

    def tensor(self) -> Tensor:
        parts = [part().detach().to("cpu", self.dtype) for part in self.parts]
        return torch.cat(parts) if len(parts) > 1 else parts[0].contiguous()


def _entries(target: LlambaConfig, own: torch.dtype, read: Callable[[str], Tensor]) -> list[Entry]:
    shapes = families.parameter_shapes(families.on_meta(target))
    rules = families.names(target, shapes)
    if target.origin.get("tied"):
        rules = [*rules, Rule("lm_head.weight", ("lm_head.weight",))]
        shapes = {**shapes, "lm_head.weight": shapes["model.embed_tokens.weight"]}
    entries = []
    for rule in rules:
        dtype = _dtype(target.origin, rule.theirs, own)
        size = torch.Size(rule.shape(shapes)).numel() * dtype.itemsize
        parts = tuple((lambda name=name: read(name)) for name in rule.ours)
        entries.append(Entry(rule.theirs, parts, dtype, size))
    return entries


def _original(model: LlambaForCausalLM) -> tuple[LlambaConfig, Callable[[str], Tensor]]:
    """The configuration that the checkpoint's config.json describes, which must still be the model's."""
    origin = model.config.origin
    if origin is None:
        raise ValueError(
            f"export_model: layout must be given ({', '.join(LAYOUTS)}) for a model that came in no other; got none"
        )
    described = families.config_of(origin["config"])
    _check_same(model.config, described, f"as the {origin['family']} config.json that it came with says")
    return model.config, model.get_parameter


def _translated(model: LlambaForCausalLM, layout: str) -> tuple[LlambaConfig, Callable[[str], Tensor]]:
    """The configuration in another layout, and how to read our parameters with the heads that it has."""
    if layout not in LAYOUTS:
        raise ValueError(f"export_model: layout must be {', '.join(LAYOUTS)}; got {layout}")
    config, module = model.config, LAYOUTS[layout]
    if others := sorted(set(config.layers) - {"attention", "mamba2"}):
        raise ValueError(f"export_model: layers must be attention or mamba2 in the layout {layout}; got {others[0]}")
    wanted = module.heads(config) if config.mamba_layers else {}
    repeated = LlambaConfig.from_dict({**config.to_dict(), **wanted})
    try:
        target = families.config_of(module.settings(repeated))
    except ValueError as error:
        raise ValueError(str(error).replace("load_model: ", "export_model: ", 1)) from error
    _check_same(repeated, target, f"which is what the layout {layout} has")
    target.origin = {**target.origin, "dtype": NAMES[model.dtype]}
    rows = _repeated_rows(config, wanted)
    return target, lambda name: _pick(model.get_parameter(name), name, rows, config)


def _pick(parameter: Tensor, name: str, rows: Tensor, config: LlambaConfig) -> Tensor:
    if ".mamba.in_proj." in name:
        return parameter.detach()[rows.to(parameter.device)]
    if ".mamba.conv1d." in name:  # its channels are x | B | C
        inner = config.mamba_d_inner
        return parameter.detach()[rows[inner : -config.mamba_num_heads].to(parameter.device) - inner]
    return parameter


def _repeated_rows(config: LlambaConfig, wanted: dict) -> Tensor:
    """The row of our in_proj (z | x | B | C | dt) that each row with `wanted` heads of x, B and C is a copy of."""
    parts, start = [torch.arange(config.mamba_d_inner)], config.mamba_d_inner
    for name, size in (("x", config.mamba_head_dim), ("B", config.mamba_d_state), ("C", config.mamba_d_state)):
        field = f"mamba_{name}_heads"
        heads = getattr(config, field)
        own = torch.arange(start, start + heads * size).view(heads, size)
        parts.append(own.repeat_interleave(wanted.get(field, heads) // heads, dim=0).flatten())
        start += heads * size
    return torch.cat([*parts, torch.arange(start, start + config.mamba_num_heads)])


def _check_same(config: LlambaConfig, described: LlambaConfig, why: str) -> None:
    for name in inspect.get_annotations(LlambaConfig):
        if name in INERT or name.startswith("mamba1_") and "mamba1" not in config.layers:
            continue
        if name.startswith("mamba_") and not config.mamba_layers:
            continue
        ours, theirs = getattr(config, name), getattr(described, name, None)
        if _single(ours) != _single(theirs):
            raise ValueError(f"export_model: {name} must be {theirs!r}, {why}; got {ours!r}")


def _single(value):
    """A number as the kernels use it: an epsilon from a GGUF file is the fp32 number next to the one that was meant."""
    return torch.tensor(value, dtype=torch.float32).item() if isinstance(value, float) else value


def _dtype(origin: dict, name: str, own: torch.dtype) -> torch.dtype:
    """The stored one, unless the model's own is narrower."""
    stored = FLOATS[origin.get("dtypes", {}).get(name, origin["dtype"])]
    return stored if torch.promote_types(stored, own) == own else own


def _write_settings(origin: dict, own: torch.dtype, folder: Path) -> None:
    settings = dict(origin["config"])
    field = "dtype" if "dtype" in settings else "torch_dtype"
    written = _dtype(origin, "", own)
    if field in settings and written != FLOATS[origin["dtype"]]:
        settings[field] = str(written).removeprefix("torch.")
    mamba_config = settings.pop("mamba_config", None)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    if mamba_config is not None:
        (folder / "mamba_config.json").write_text(json.dumps(mamba_config, indent=2) + "\n")


def _write_shards(entries: list[Entry], folder: Path) -> None:
    """What must be joined or converted is in memory a shard at a time."""
    shards, room = [], 0
    for entry in entries:
        if not shards or entry.size > room:
            shards.append([])
            room = SHARD
        shards[-1].append(entry)
        room -= entry.size
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [SAFE_WEIGHTS_NAME]
    for name, shard in zip(names, shards, strict=True):
        _save_shard({entry.name: entry.tensor() for entry in shard}, folder / name)
    if len(shards) > 1:
        weight_map = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": sum(entry.size for entry in entries)}, "weight_map": weight_map}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _save_shard(tensors: dict[str, Tensor], path: Path) -> None:
    tied = tensors.get("lm_head.weight")
    if tied is not None and sum(t.data_ptr() == tied.data_ptr() for t in tensors.values()) > 1:
        tensors["lm_head.weight"] = tied.clone()  # the format has no two names for one tensor
    save_file(tensors, path, metadata={"format": "pt"})
