"""Long proofs on the real model: what quickstart claims, seen from outside. `pytest -m slow`, about half an hour.

They use the quickstart run in LLAMBA_RUN (default runs/quickstart) and make it first if it is not there.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import STEPS, assert_bf16_parity, assert_fp32_parity, exact_logits, theirs_by_step
from transformers import AutoModelForCausalLM

from llamba_kernels import load_model, load_tokenizer
from llamba_kernels.decode_bench import held_out_prompts

pytestmark = pytest.mark.slow


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


@pytest.fixture(scope="module")
def sequences(run_dir):
    """(tokens, prompt): 88 tokens to prefill, then as many as the parity tests decode, of three held-out files."""
    prompts = held_out_prompts(load_tokenizer(run_dir / "teacher"), None, 3, length=88 + STEPS)
    assert len({tuple(prompt) for prompt in prompts}) == 3
    return [(torch.tensor(prompt), 88) for prompt in prompts]


def test_teacher_logits_match_transformers(run_dir, sequences):
    """fp32 within 1e-4 of the largest logit; bf16: both errors against fp64 at most twice transformers' own.

    By prefill, over 40 cached steps, and with windows, rejected drafts and rollbacks; transformers with its KV cache.
    """
    ours, theirs = load_model(run_dir / "teacher"), AutoModelForCausalLM.from_pretrained(run_dir / "teacher").eval()
    relative = assert_fp32_parity(ours, sequences, lambda tokens, prompt: theirs_by_step(theirs, tokens, prompt))
    print(f"SmolLM2, fp32: {relative:.2g} of the largest logit")
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    exact = copy.deepcopy(theirs).double()
    found = assert_bf16_parity(
        ours,
        sequences,
        lambda tokens, _: exact(tokens[None]).logits[0].detach(),
        lambda tokens, prompt: theirs_by_step(theirs, tokens, prompt),
    )
    print(f"SmolLM2, bf16, [largest, rms] error, ours and transformers': {found}")


def test_hybrid_logits_match_the_reference(run_dir, sequences):
    """As above, against the slow reference in fp64; in bf16 the yardstick is that reference, rounded to bf16."""
    model = load_model(run_dir / "hybrid")
    # Beyond a chunk of the scan, and two shorter: the reference takes a sixth of a second per token.
    lengths = zip((88, 24, 5), sequences, strict=True)
    sequences = [(tokens[: prompt + STEPS], prompt) for prompt, (tokens, _) in lengths]
    relative = assert_fp32_parity(model, sequences, lambda tokens, _: exact_logits(model, tokens))
    print(f"hybrid, fp32: {relative:.2g} of the largest logit")
    model = model.bfloat16()
    found = assert_bf16_parity(
        model,
        sequences,
        lambda tokens, _: exact_logits(model, tokens),
        lambda tokens, _: exact_logits(model, tokens, stored_dtype=torch.bfloat16),
    )
    print(f"hybrid, bf16, [largest, rms] error, ours and the rounded reference's: {found}")


def test_the_hybrid_loads_with_plain_transformers(run_dir):
    program = """
import sys, torch, llamba_kernels
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("import os\\n", return_tensors="pt").input_ids
tokens = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1]:].tolist()
recomputed = model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False)[0, ids.shape[1]:].tolist()
assert tokens == recomputed
assert tokens == llamba_kernels.SpeculativeDecoder(model).generate(ids[0].tolist(), 12).tokens
print(type(model).__name__, tokenizer.decode(tokens))
"""
    done = subprocess.run([sys.executable, "-c", program, str(run_dir / "hybrid")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("LlambaForCausalLM")
