"""A checkpoint's files: settings, and tensors that are read one by one into memory that is already there.

What is wrong with them is said in one sentence before a model is made of them. transformers finds most of it, too, but
late, in the words of whichever parser stumbled, and not all: weights in integers it casts, a damaged
generation_config.json it ignores.
"""

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # safetensors' names
NAMES = {dtype: name for name, dtype in FLOATS.items()}
BLOCK = 2**24  # bytes converted at a time


def line(error: BaseException) -> str:
    """An error's message on one line."""
    text = "".join(c for c in str(error) if c.isprintable() or c.isspace())  # torch.load's is in bold
    text = " ".join(text.split()) or type(error).__name__
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
        settings = json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"load_model: {name} of {source} must be JSON; got {line(error)}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"load_model: {name} of {source} must hold a JSON object; got {type(settings).__name__}")
    return settings


def _special_float(value: dict):
    """transformers writes infinities as {"__float__": "Infinity"}."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


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


@dataclass(frozen=True)
class Stored:
    """Where and how a tensor is stored: its bytes from `start` on. stride: None if they are contiguous."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    start: int
    stride: tuple[int, ...] | None = None


class Weights:
    """The tensors of a checkpoint: what is stored is known at once, values are read on demand.

    Files are read, not mapped: pages of a mapping count as the process's own memory as long as it exists.
    """

    def __init__(self, source: str):
        self.source = source
        self.stored: dict[str, Stored] = {}
        self._block = torch.empty(0, dtype=torch.uint8)  # one for all, as freed ones would be left as holes
        for path in _weight_files(source):
            found = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
            for name in found.keys() & self.stored.keys():
                raise ValueError(
                    f"load_model: {name} must be stored once; got it in {path} and in {self.stored[name].path}"
                )
            self.stored |= found

    def read(self, name: str, out: Tensor) -> None:
        """Fill `out`, contiguous and of the tensor's shape, converting to its dtype."""
        stored = self.stored[name]
        if stored.stride is None:
            self._read(stored, out.view(-1))
        else:
            last = sum((size - 1) * step for size, step in zip(stored.shape, stored.stride, strict=True))
            whole = torch.empty(last + 1, dtype=out.dtype)
            self._read(stored, whole)
            out.copy_(whole.as_strided(stored.shape, stored.stride))

    def equals(self, name: str, tensor: Tensor) -> bool:
        """Whether the stored values, converted, are those of a contiguous tensor; a block at a time if they are."""
        stored = self.stored[name]
        if stored.stride is not None:
            other = torch.empty_like(tensor)
            self.read(name, other)
            return torch.equal(other, tensor)
        parts = tensor.view(-1).split(BLOCK // tensor.element_size())
        other, start = torch.empty_like(parts[0]), stored.start
        for part in parts:
            self._read(replace(stored, start=start), other[: len(part)])
            if not torch.equal(other[: len(part)], part):
                return False
            start += len(part) * FLOATS[stored.dtype].itemsize
        return True

    def _read(self, stored: Stored, out: Tensor) -> None:
        try:
            with stored.path.open("rb", buffering=0) as file:
                file.seek(stored.start)
                self._fill_converting(file, FLOATS[stored.dtype], out)
        except (OSError, EOFError) as error:
            raise ValueError(f"load_model: {stored.path} must hold readable weights; got {line(error)}") from error

    def _fill_converting(self, file, dtype: torch.dtype, out: Tensor) -> None:
        if out.dtype == dtype:
            _fill(file, out)
            return
        if not len(self._block):
            self._block = torch.empty(BLOCK, dtype=torch.uint8)
        block = self._block.view(dtype)
        for part in out.split(len(block)):
            _fill(file, block[: len(part)])
            part.copy_(block[: len(part)])


def _fill(file, out: Tensor) -> None:
    view = memoryview(out.view(torch.uint8).numpy())
    while len(view):
        count = file.readinto(view)
        if not count:
            raise EOFError("the end of the file")
        view = view[count:]


def _safetensors(path: Path) -> dict[str, Stored]:
    """The header, after the library has checked it against the file."""
    try:
        with safe_open(path, "pt"):
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"load_model: {path} must hold readable weights; got {line(error)}") from error
    header.pop("__metadata__", None)
    return {
        name: Stored(path, tuple(entry["shape"]), entry["dtype"], 8 + size + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def _pickled(path: Path) -> dict[str, Stored]:
    """The tensors' places in torch.save's zip file; nothing but tensors is unpickled, and none of their values."""
    try:
        with FakeTensorMode():
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"load_model: {path} must hold readable weights; got {line(error)}") from error
    for value in tensors.values() if isinstance(tensors, dict) else [tensors]:
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            got = str(value.layout).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"load_model: {path} must hold dense tensors by name; got {got}")
    found = {}
    for name, tensor in tensors.items():
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None:
            raise ValueError(f"load_model: {path} must be a file of torch 1.6 or newer; got an older format")
        start += tensor.storage_offset() * tensor.element_size()
        dtype = NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
        stride = None if tensor.is_contiguous() else tensor.stride()
        found[str(name)] = Stored(path, tuple(tensor.shape), dtype, start, stride)
    return found


def _weight_files(source: str) -> list[Path]:
    """In transformers' order: safetensors before pickled files, the single file before the shards of the index."""
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (path := find(source, single)) is not None:
            return [path]
        if (settings := read_settings(source, index)) is not None:
            return _shards(source, index, settings)
    raise ValueError(
        f"load_model: path_or_id must hold readable weights; got {source}: Error no file named {SAFE_WEIGHTS_NAME}, "
        f"{SAFE_WEIGHTS_INDEX_NAME}, {WEIGHTS_NAME} or {WEIGHTS_INDEX_NAME}"
    )


def _shards(source: str, index: str, settings: dict) -> list[Path]:
    shards = settings.get("weight_map")
    owner = f"load_model: {index} of {source}"
    if not isinstance(shards, dict) or not shards or not all(map(_is_file_name, shards.values())):
        raise ValueError(f"{owner} must hold a weight_map of file names; got {_short(shards)}")
    if not isinstance(settings.get("metadata"), dict):
        raise ValueError(f"{owner} must hold metadata; got {_short(settings.get('metadata'))}")
    files = []
    for name in sorted(set(shards.values())):
        files.append(find(source, name))
        if files[-1] is None:
            raise ValueError(f"load_model: {source} must hold every file of {index}; got no {name}")
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
