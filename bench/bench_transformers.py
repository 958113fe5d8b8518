"""transformers' own models with and without integrations.transformers: random weights of known shapes, greedy decoding.

The two take turns in one process. Speeds of decoding leave out the prefill, which has a column of its own; losing rows
stay.
"""

import statistics
import time

import pytest
import torch
import transformers as hf
from harness import Rows, others_load, wait_for_quiet

from llamba_kernels.integrations import transformers as integration

TURNS, PROMPT_TOKENS, NEW_TOKENS = 5, 64, 32
MODELS = {
    "mamba-130m": lambda: hf.MambaForCausalLM(hf.MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24)),
    "mamba2-130m": lambda: hf.Mamba2ForCausalLM(
        hf.Mamba2Config(vocab_size=50288, hidden_size=768, num_hidden_layers=24, num_heads=24, head_dim=64, n_groups=1)
    ),
}
COLUMNS = ["case", "theirs tok/s", "ours tok/s", "x theirs", "min", "max", "prefill theirs ms", "ours ms", "x theirs"]


@torch.inference_mode()
def run(model, prompt):
    """Tokens per second after the first new token, and seconds of the prefill."""
    start = time.perf_counter()
    output = model(prompt, use_cache=True)
    prefill = time.perf_counter() - start
    for step in range(NEW_TOKENS + 1):
        if step == 1:
            start = time.perf_counter()
        token = output.logits[:, -1:].argmax(-1)
        output = model(token, use_cache=True, cache_params=output.cache_params)
    return prompt.shape[0] * NEW_TOKENS / (time.perf_counter() - start), prefill


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def bench_transformers(request, benchmark, name, dtype, batch):
    torch.manual_seed(0)
    model = MODELS[name]().eval().to(dtype)
    prompt = torch.randint(1000, (batch, PROMPT_TOKENS))
    with integration.enable():
        run(model, prompt)

    def turns():
        theirs, ours = [], []
        for _ in range(TURNS):
            theirs.append(run(model, prompt))
            with integration.enable():
                ours.append(run(model, prompt))
        return theirs, ours

    load = wait_for_quiet(30)
    theirs, ours = benchmark.pedantic(turns, rounds=1)
    load = max(load, others_load())
    ratios = [b[0] / a[0] for a, b in zip(theirs, ours, strict=True)]
    speeds, prefills = ([statistics.median(turn[i] for turn in each) for each in (theirs, ours)] for i in (0, 1))
    row = [f"{name}, {str(dtype)[6:]}, batch {batch}" + (" *" if load >= 0.1 else "")]
    row += [f"{speed:.1f}" for speed in speeds]
    row += [f"{f(ratios):.2f}" for f in (statistics.median, min, max)]
    row += [*(f"{1e3 * seconds:.0f}" for seconds in prefills), f"{prefills[0] / prefills[1]:.2f}"]
    benchmark.extra_info.update(theirs=theirs, ours=ours, others_load=load)
    title = f"transformers {hf.__version__}: {PROMPT_TOKENS} + {NEW_TOKENS} tokens, {TURNS} turns; * beside other work"
    request.config.stash[Rows.KEY].tables.setdefault(title, [COLUMNS]).append(row)
