"""Greedy decoding of Python source with a real model: transformers' generate, ours one token a step, ours speculative.

The contenders take turns, prompt by prompt, in one process, and the read bandwidth is measured at each turn; ratios are
of the same prompt. Speeds leave out the prompt and the token that its prefill yields. Needs the folders of a quickstart
run: LLAMBA_RUN, default runs/quickstart.
"""

import os
import statistics
import time
from pathlib import Path

import pytest
import torch
from harness import Rows, others_load, read_bandwidth, wait_for_quiet
from transformers import AutoModelForCausalLM

from llamba_kernels import SpeculativeDecoder, load_model, load_tokenizer
from llamba_kernels.decode_bench import held_out_prompts
from llamba_kernels.speculative import ModelDraft, first_layers

RUN = Path(os.environ.get("LLAMBA_RUN", "runs/quickstart"))
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 10, 64, 100
WINDOWS = (2, 4, 6, 8)
DTYPES = [torch.float32, torch.bfloat16]
COLUMNS = ["case", "tok/s median", "min", "max", "x plain median", "min", "max", "tokens/step", "% of read bandwidth"]


class Clock:
    """A streamer that remembers when each token came; the first put is the prompt."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass

    def tokens_per_second(self):
        first, last = self.times[1], self.times[-1]
        return (len(self.times) - 2) / (last - first)


def transformers_generate(folder, dtype):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}

    def run(prompt):
        clock = Clock()
        tokens = model.generate(torch.tensor([prompt]), streamer=clock, **options)[0, len(prompt) :].tolist()
        return tokens, clock.tokens_per_second(), 1.0

    return run


def ours(model, window, draft=None):
    decoder = SpeculativeDecoder(model, window, draft, max_tokens=PROMPT_TOKENS + NEW_TOKENS)

    def run(prompt):
        result = decoder.generate(prompt, NEW_TOKENS, eos_token_id=-1)
        return result.tokens, result.stats.tokens_per_second, result.stats.acceptance_length

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["teacher", "hybrid"])
def bench_decode(request, benchmark, name, dtype):
    folder = RUN / name
    if not folder.exists():
        pytest.skip(f"bench_decode: {folder} must be there (llamba quickstart writes it); got none")
    model, tokenizer = load_model(folder, dtype), load_tokenizer(folder)
    prompts = held_out_prompts(tokenizer, None, PROMPTS, PROMPT_TOKENS)
    contenders = {"plain": ours(model, 1)} | {f"window {window}": ours(model, window) for window in WINDOWS}
    contenders["window 4, own first 6 layers"] = ours(model, 4, ModelDraft(first_layers(model, 6)))
    if name == "teacher":  # on the hybrid transformers' generate would take our steps
        contenders = {"transformers generate": transformers_generate(folder, dtype)} | contenders
    for contender in contenders.values():
        contender(prompts[0])  # warm caches, captures

    def run():
        speeds, lengths, bandwidths = {each: [] for each in contenders}, {each: [] for each in contenders}, []
        for prompt in prompts:
            bandwidths.append(read_bandwidth())
            outputs = {}
            for each, contender in contenders.items():
                outputs[each], speed, length = contender(prompt)
                speeds[each].append(speed)
                lengths[each].append(length)
            assert all(outputs[each] == outputs["plain"] for each in contenders if each.startswith("window"))
        return speeds, lengths, bandwidths

    load = wait_for_quiet(30)
    speeds, lengths, bandwidths = benchmark.pedantic(run, rounds=1)
    load = max(load, others_load())
    weights = sum(parameter.nbytes for parameter in model.parameters())
    table = [COLUMNS]
    for each, values in speeds.items():
        ratios = [value / plain for value, plain in zip(values, speeds["plain"], strict=True)]
        shares = [100 * value * weights / width for value, width in zip(values, bandwidths, strict=True)]
        summary = [f"{f(column):.{digits}f}" for column, digits in ((values, 1), (ratios, 2)) for f in SUMMARY]
        share = f"{statistics.median(shares):.0f}" if each in ("plain", "transformers generate") else "-"
        table.append([each, *summary, f"{statistics.mean(lengths[each]):.2f}", share])
    benchmark.extra_info.update(
        speeds=speeds, lengths=lengths, read_gb_per_s=[width / 1e9 for width in bandwidths], others_load=load
    )
    busy = " (beside other work)" if load >= 0.1 else ""
    where = f"{PROMPTS} prompts of {PROMPT_TOKENS} + {NEW_TOKENS} tokens of Python source, drafts by prompt lookup"
    bandwidth = f"read {statistics.median(bandwidths) / 1e9:.1f} GB/s"
    title = f"{name}, {str(dtype)[6:]}, {weights / 1e6:.0f} MB of weights: {where}; {bandwidth}{busy}"
    request.config.stash[Rows.KEY].tables[title] = table


SUMMARY = (statistics.median, min, max)
