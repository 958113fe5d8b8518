"""Long proofs on the real model: what quickstart claims, seen from outside. `pytest -m slow`, about half an hour.

They use the quickstart run in LLAMBA_RUN (default runs/quickstart) and make it first if it is not there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llamba_kernels import SpeculativeDecoder, load_model, load_tokenizer
from llamba_kernels.decode_bench import held_out_prompts

pytestmark = pytest.mark.slow
PROMPTS, NEW_TOKENS, WINDOWS = 20, 100, range(1, 9)


@pytest.fixture(scope="module")
def run_dir():
    folder = Path(os.environ.get("LLAMBA_RUN", "runs/quickstart"))
    if not (folder / "results.json").exists():
        command = [
            sys.executable,
            "-c",
            "from llamba_kernels.cli import run; run()",
            "quickstart",
            "--out",
            str(folder),
        ]
        subprocess.run(command, check=True)
    return folder


def test_quickstart_quality(run_dir):
    """At least 7 of 30 layers. Each of two seeds is near the better of teacher and tuned teacher on held-out text, near
    the teacher on the other text, and on both better than deletion, which conversion alone is no worse than."""
    results = json.loads((run_dir / "results.json").read_text())
    rows = {(row["name"], row["seed"]): row for row in results["rows"]}
    teacher, deleted = rows["teacher", None], rows["deleted", None]
    seeds = {seed for _, seed in rows if seed is not None}
    assert len(results["converted_layers"]) >= 7 and len(seeds) >= 2
    for seed in seeds:
        distilled, best = rows["distilled", seed], min(teacher["perplexity"], rows["tuned", seed]["perplexity"])
        assert distilled["perplexity"] <= 1.30 * best
        assert distilled["other_perplexity"] <= 1.45 * teacher["other_perplexity"]
        for text in ("perplexity", "other_perplexity"):
            assert distilled[text] < deleted[text]
        assert rows["converted", seed]["perplexity"] <= deleted["perplexity"]
    assert teacher["same_next_token"] == 1.0
    assert all(row["identical"] for row in results["rows"] if row["identical"] is not None)


@pytest.mark.parametrize("name", ["teacher", "hybrid"])
def test_greedy_speculation_equals_plain_decoding(run_dir, name):
    """fp32, 20 prompts x 100 tokens, windows 1 to 8, token for token."""
    model, tokenizer = load_model(run_dir / name), load_tokenizer(run_dir / name)
    prompts = held_out_prompts(tokenizer, None, PROMPTS)
    assert len({tuple(prompt) for prompt in prompts}) == PROMPTS
    plain, drafts = None, 0
    for window in WINDOWS:
        decoder = SpeculativeDecoder(model, window=window, max_tokens=256)
        outputs = []
        for prompt in prompts:
            outputs.append(decoder.generate(prompt, NEW_TOKENS, eos_token_id=-1).tokens)
            drafts += decoder.stats.drafted - decoder.stats.accepted_drafts
        plain = outputs if plain is None else plain
        different = [i for i in range(PROMPTS) if outputs[i] != plain[i]]
        assert not different, f"window {window}: prompts {different} differ from plain decoding"
    assert drafts > 1000, "hardly a draft was rejected: the comparison would prove little"


def test_teacher_logits_match_transformers(run_dir):
    """fp32, 1e-4 relative, full sequences and 40 cached steps after a prompt."""
    ours, theirs = load_model(run_dir / "teacher"), AutoModelForCausalLM.from_pretrained(run_dir / "teacher")
    prompt = held_out_prompts(load_tokenizer(run_dir / "teacher"), None, 1, length=128)[0]
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt])).logits[0]
        scale = expected.abs().max()
        assert (ours(torch.tensor([prompt])).logits[0] - expected).abs().max() <= 1e-4 * scale
        decoder = SpeculativeDecoder(ours, window=1, max_tokens=128)
        decoder.cache.prefill(ours, 0, torch.tensor(prompt[:88]))
        one = torch.ones(1, dtype=torch.int32)
        for i in range(88, 128):
            decoder.cache.cursor.begin(decoder.slots, one)
            logits = decoder.step(decoder.slots, torch.tensor([[prompt[i]]]))[0, 0]
            decoder.cache.cursor.commit(decoder.slots, one)
            assert (logits - expected[i]).abs().max() <= 1e-4 * scale


def test_the_hybrid_loads_with_plain_transformers(run_dir):
    program = """
import sys, torch, llamba_kernels
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("import os\\n", return_tensors="pt").input_ids
tokens = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1]:].tolist()
assert tokens == llamba_kernels.SpeculativeDecoder(model).generate(ids[0].tolist(), 12).tokens
print(type(model).__name__, tokenizer.decode(tokens))
"""
    done = subprocess.run([sys.executable, "-c", program, str(run_dir / "hybrid")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("LlambaForCausalLM")
