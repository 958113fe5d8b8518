"""Text for distillation: the running Python's own sources or the user's files, a fixed held-out part, token windows."""

import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

SUFFIXES = (".py", ".txt", ".md", ".rst")
CHUNK_BYTES = 64 * 1024
HELD_OUT_EVERY = 33
WINDOWS_PER_CHUNK = 4  # of some forty: a short run still sees many files
# Other packages are not part of Python, and many distributions leave the tests out.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}


@dataclass(frozen=True)
class Text:
    """Chunks of text of about 64 kB; no chunk is in both lists."""

    train: list[str]
    held_out: list[str]


def read_text(data: str | Path | Sequence[str | Path] | None = None) -> Text:
    """The text of `data` (files, or folders searched for .py .txt .md .rst), by default of the standard library.

    Files are joined in sorted order and cut into chunks; every 33rd chunk is held out. The split depends on the set of
    files alone, not on how `data` names them, so every stage and every evaluation of the same files agrees on it.
    """
    files = text_files(data)
    joined = b"\n".join(file.read_bytes() for file in files)
    chunks = [joined[i : i + CHUNK_BYTES].decode("utf-8", errors="ignore") for i in range(0, len(joined), CHUNK_BYTES)]
    held_out = chunks[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or chunks[-1:]  # a short text holds out its last chunk
    if len(chunks) < 2:
        raise ValueError(f"read_text: data must hold more than {CHUNK_BYTES} bytes of text; got {len(joined)} bytes")
    train = [c for i, c in enumerate(chunks) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    if len(chunks) < HELD_OUT_EVERY:
        train = chunks[:-1]
    return Text(train, held_out)


def text_files(data: str | Path | Sequence[str | Path] | None = None) -> list[Path]:
    """The files that `read_text` reads, each once and sorted by path, however `data` names and orders them.

    The standard library's are those without the language reference, which is prose in a .py file: it is what
    `untrained_text` returns, and nothing that trains may have seen it.
    """
    reference = None
    if data is None:
        reference = language_reference()
        data = [sysconfig.get_paths()["stdlib"]]
        suffixes = (".py",)
    else:
        data = [data] if isinstance(data, (str, Path)) else list(data)
        suffixes = SUFFIXES
    files = []
    for entry in (Path(entry).resolve() for entry in data):
        if entry.is_file():
            files.append(entry)
        elif entry.is_dir():
            files += _walk(entry, suffixes)
        else:
            raise ValueError(f"read_text: data must be files or folders that exist; got {entry}")
    if not files:
        raise ValueError(f"read_text: data must hold files ending in {' '.join(suffixes)}; got none in {data}")
    once = {}
    for file in sorted(files):
        if file == reference:
            continue
        once.setdefault(file.resolve(), file)  # by its target: a link to a file that is read already adds nothing
    return list(once.values())


def untrained_text(data: str | Path | Sequence[str | Path] | None = None) -> list[str]:
    """Chunks of text of another domain than the default one trains on: all of `data`, by default Python's language
    reference, English prose that every CPython carries for its `help()`.
    """
    if data is not None:
        text = read_text(data)
        return [*text.train, *text.held_out]
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "untrained_text: data must be given where Python comes without pydoc_data.topics; got None"
        ) from None
    joined = "\n\n".join(topics[name] for name in sorted(topics))
    return [joined[i : i + CHUNK_BYTES] for i in range(0, len(joined), CHUNK_BYTES)]


def check_apart(command: str, data, other_data):
    """Refuse a text to train on and an untrained one that share a file."""
    untrained = {file.resolve() for file in text_files(other_data)} if other_data else {language_reference()}
    for file in text_files(data):
        if file.resolve() in untrained:
            raise ValueError(f"{command}: other_data must share no file with the text to train on; got {file} in both")


def language_reference() -> Path:
    return (Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py").resolve()


def _walk(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    return [p for p in found if not _SKIPPED_FOLDERS.intersection(p.relative_to(folder).parts)]


def token_windows(tokenizer, chunks: Sequence[str], window: int, count: int, seed: str | None = None) -> Tensor:
    """`count` windows of `window` tokens, (count, window) int64; fewer where the text ends.

    With a seed, windows are random ones of chunks in a shuffled order, few of each while there are chunks left. Without
    one they are spread evenly over all chunks: the same windows in the same order for every model that shares the
    tokenizer. Stages name themselves in their seeds, so that they do not all read the same windows.
    """
    if window < 2 or count < 1:
        raise ValueError(f"token_windows: window must be at least 2 and count at least 1; got {window} and {count}")
    chunks = list(chunks)
    shuffle = random.Random(seed)
    if seed is not None:
        shuffle.shuffle(chunks)
    per_chunk = -(-count // len(chunks))
    if seed is not None:
        per_chunk = max(per_chunk, WINDOWS_PER_CHUNK)
    windows: list[list[int]] = []
    left: list[list[int]] = []  # for when the chunks are too few
    for chunk in chunks:  # chunks are tokenised only as they are needed
        ids = tokenizer(chunk, add_special_tokens=False)["input_ids"]
        cut = [ids[i : i + window] for i in range(0, len(ids) - window + 1, window)]
        if seed is not None:
            shuffle.shuffle(cut)
            left += cut[per_chunk:]
        windows += cut[: min(per_chunk, count - len(windows))]
        if len(windows) == count:
            break
    windows += left[: count - len(windows)]
    if not windows:
        raise ValueError(f"token_windows: chunks must hold at least one window of {window} tokens; got none")
    if seed is not None:
        shuffle.shuffle(windows)
    return torch.tensor(windows)
