"""Files and model folders that are either complete or absent, and the sentence that says why one cannot be written."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.loading import quiet


@contextlib.contextmanager
def new_folder(out_dir: str | Path, command: str) -> Iterator[Path]:
    """A staging folder beside `out_dir` that takes its name when the block ends well and vanishes when it does not.

    What keeps it from being written, such as a full disk, is said in one sentence in the name of `command`.
    """
    out_dir = Path(out_dir)
    staging = out_dir.with_name(out_dir.name + ".staging")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    with saving(command, out_dir, staging):
        staging.mkdir(parents=True)
        yield staging
        publish(staging, out_dir)


@contextlib.contextmanager
def saving(command: str, path: Path, staging: Path | None = None) -> Iterator[None]:
    """A block that writes `path`: what goes wrong is said in one sentence, and `staging`, its unfinished part, removed.

    Each library says a full disk in a way of its own: Python with an OSError, safetensors with a SafetensorError,
    torch.save with a RuntimeError.
    """
    try:
        yield
    except BaseException as error:
        if staging is not None and staging.is_dir():
            shutil.rmtree(staging, ignore_errors=True)
        elif staging is not None:
            staging.unlink(missing_ok=True)
        torch_save = isinstance(error, RuntimeError) and "inline_container" in str(error)  # the file of its writer
        if not isinstance(error, (OSError, SafetensorError)) and not torch_save:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OSError(
            f"{command}: {path} must be writable (make room, and the same command goes on from here); got {reason}"
        ) from error


def write_file(command: str, path: Path, text: str):
    """Replace a file, wholly or not at all; its folder is made if need be."""
    staging = path.with_name(path.name + ".tmp")
    with saving(command, path, staging):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging.write_text(text)
        publish(staging, path)


def check_writable(command: str, path: Path):
    """Refuse, before any work, a file that could not be written after it; the file and its folder stay as they are."""
    try:
        with open(path, "ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{command}: {path} must be a file that can be written; got {error.strerror}") from error


def publish(staging: Path, path: Path):
    """Give a finished file or folder its final name; its content is on disk before, so a power cut leaves no half."""
    sync(staging)
    staging.replace(path)
    sync(path.parent, inside=False)


def sync(path: Path, inside: bool = True):
    """Wait until a file, or a folder's entries and with `inside` all that is in them, are on disk."""
    for entry in [*(path.rglob("*") if inside else ()), path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(command: str, folder: Path, out_dir: str | Path) -> Iterator[None]:
    """A block that alone, of all processes, works in `folder` towards `out_dir`; it leaves no empty folder."""
    path = folder / "lock"
    while True:
        with saving(command, folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(path, "ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ValueError(
                f"{command}: out_dir must be written by one process at a time; got {out_dir}, where another is at work"
            ) from None
        if _is_at(path, lock):  # and not what a process that has just ended has removed
            break
        lock.close()
    try:
        yield
    finally:
        if _is_at(path, lock):
            path.unlink()
            with contextlib.suppress(OSError):
                folder.rmdir()
        lock.close()


def _is_at(path: Path, file) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def check_absent(command: str, out_dir: str | Path):
    if Path(out_dir).exists():
        raise ValueError(f"{command}: out_dir must not exist yet, nothing is overwritten; got {out_dir}")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path):
    """Write a plain Hugging Face folder: config, safetensors, generation config, tokenizer with its chat template."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
