"""Model folders that are either complete or absent."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.loading import quiet


@contextlib.contextmanager
def new_folder(out_dir: str | Path) -> Iterator[Path]:
    """A staging folder beside `out_dir` that takes its name when the block ends well and vanishes when it does not."""
    out_dir = Path(out_dir)
    staging = out_dir.with_name(out_dir.name + ".staging")
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir(parents=True)
    try:
        yield staging
        publish(staging, out_dir)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


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


def check_absent(command: str, out_dir: str | Path):
    if Path(out_dir).exists():
        raise ValueError(f"{command}: out_dir must not exist yet, nothing is overwritten; got {out_dir}")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path):
    """Write a plain Hugging Face folder: config, safetensors, generation config, tokenizer with its chat template."""
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
