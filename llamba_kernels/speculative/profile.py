"""Where the time of a decoding step goes."""

import time
from collections import Counter

from .decode import SpeculativeDecoder

# operator of a step -> part of it
PARTS = {
    "skinny_linear": "linear layers",
    "mamba2_verify": "mamba2_verify",
    "attention_step": "attention",
    "rms_norm": "norms",
    "gated_rms_norm": "norms",
    "rope": "RoPE and SiLU",
    "silu_mul": "RoPE and SiLU",
}
MAMBA1_PARTS = {"conv1d_verify": "conv1d_verify", "mamba1_verify": "mamba1_verify"}  # of models that have such layers


def profile_step(decoder: SpeculativeDecoder, prompt: list[int], tokens: int = 32) -> dict[str, float]:
    """Milliseconds per verify step of each part while `tokens` tokens are decoded greedily; the prefill is left out.

    The first tokens, before every shape of a step has been captured, count as Python and the rest.
    """
    seconds = Counter()
    stream = decoder.stream(prompt, tokens, eos_token_id=-1)
    next(stream)  # the prefill
    decoder.step.seconds = seconds
    try:
        start = time.perf_counter()
        for _ in stream:
            pass
        total = time.perf_counter() - start
    finally:
        decoder.step.seconds = None
    parts = PARTS | (MAMBA1_PARTS if "mamba1" in decoder.model.config.layers else {})
    spent = Counter(dict.fromkeys(parts.values(), 0.0))
    for operator, part in parts.items():
        spent[part] += seconds[operator]
    spent["drafts and acceptance"] = decoder.stats.seconds["draft"] + decoder.stats.seconds["accept"]
    spent["Python and the rest"] = total - sum(spent.values())
    return {part: 1e3 * seconds / max(decoder.stats.steps, 1) for part, seconds in spent.items()}
