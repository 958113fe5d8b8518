"""What is wrong with a checkpoint's files, said in one sentence before a model is made of them.

transformers finds most of it, too, but late, in the words of whichever parser stumbled, and not all: weights in
integers it casts, a damaged generation_config.json it ignores.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names


def line(error: BaseException) -> str:
    """An error's message on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


def find(source: str, name: str, required: bool = False) -> Path | None:
    """A file of a folder or of a hub id, there by way of the cache. None: there is none, required or not, in a folder;
    under a hub id that and being offline look alike, so what is required is asked for in earnest.
    """
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=required)
    except OSError as error:
        raise ValueError(f"load_model: path_or_id must hold {name}; got {source}: {line(error)}") from error
    return None if found is None else Path(found)


def read_settings(source: str, name: str, required: bool = False) -> dict | None:
    """A JSON file that must hold an object; None as for `find`."""
    path = find(source, name, required)
    if path is None:
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"load_model: {name} of {source} must be JSON; got {line(error)}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"load_model: {name} of {source} must hold a JSON object; got {type(settings).__name__}")
    return settings


def check_generation_config(source: str) -> None:
    """transformers would go on without a damaged one, and decoding would stop at other tokens or never."""
    settings = read_settings(source, "generation_config.json") or {}
    tokens = settings.get("eos_token_id")
    for token in tokens if isinstance(tokens, list) else [tokens]:
        if token is not None and type(token) is not int:
            raise ValueError(
                f"load_model: eos_token_id in generation_config.json of {source} must be an int or a list of ints; "
                f"got {tokens!r}"
            )


def check_stored(source: str, expected: dict[str, Tensor]) -> None:
    """The safetensors files, as far as their headers tell: readable, floating point, and with the model's shapes.

    Names without a counterpart in `expected` are left to the loader, which knows what may be renamed or derived.
    """
    for path in _weight_files(source):
        try:
            with safe_open(path, "pt") as file:
                stored = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118 (not a dict)
                stored = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in stored}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"load_model: {path} must hold readable weights; got {line(error)}") from error
        for name in sorted(stored.keys() & expected.keys()):
            shape, dtype = stored[name]
            wanted = tuple(expected[name].shape)
            if shape != wanted:
                raise ValueError(
                    f"load_model: {name} must have shape {wanted} as config.json says; got {shape} in {source}"
                )
            if dtype not in FLOATS:
                raise ValueError(f"load_model: {name} must be one of {', '.join(FLOATS)}; got {dtype} in {source}")


def _weight_files(source: str) -> list[Path]:
    """In transformers' order: the single file, else the shards of the index; none: other formats, not looked at."""
    single = find(source, SAFE_WEIGHTS_NAME)
    if single is not None:
        return [single]
    index = read_settings(source, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return []
    shards = index.get("weight_map")
    owner = f"load_model: {SAFE_WEIGHTS_INDEX_NAME} of {source}"
    if not isinstance(shards, dict) or not shards or not all(map(_is_file_name, shards.values())):
        raise ValueError(f"{owner} must hold a weight_map of file names; got {_short(shards)}")
    if not isinstance(index.get("metadata"), dict):
        raise ValueError(f"{owner} must hold metadata; got {_short(index.get('metadata'))}")
    files = []
    for name in sorted(set(shards.values())):
        files.append(find(source, name))
        if files[-1] is None:
            raise ValueError(f"load_model: {source} must hold every file of {SAFE_WEIGHTS_INDEX_NAME}; got no {name}")
    return files


def check_finite(source: str, model) -> None:
    """A NaN or an infinity reaches every logit. The sum shows both; only a suspicious one is looked at closely."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter.sum()) and not torch.isfinite(parameter).all():
            wrong, dtype = int((~torch.isfinite(parameter)).sum()), str(parameter.dtype).removeprefix("torch.")
            raise ValueError(
                f"load_model: {name} must be finite in {dtype}; got {wrong} values that are not in {source}"
            )


def _is_file_name(value) -> bool:
    return isinstance(value, str) and Path(value).name == value


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + " ..."
