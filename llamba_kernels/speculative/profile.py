"""Where the time of a decoding step goes."""

import time
from collections import Counter

from .decode import SpeculativeDecoder

# operator attribute of StepModel -> part of a step
PARTS = {
    "linear": "linear layers",
    "mamba2": "mamba2_verify",
    "attend": "attention",
    "norm": "norms",
    "gated_norm": "norms",
    "rotate": "RoPE and SiLU",
    "silu_mul": "RoPE and SiLU",
}


def profile_step(decoder: SpeculativeDecoder, prompt: list[int], tokens: int = 32) -> dict[str, float]:
    """Milliseconds per verify step of each part while `tokens` tokens are decoded greedily; the prefill is left out.

    The step's operators run behind a clock meanwhile: torch's profiler writes to standard error whatever one does.
    """
    spent = Counter(dict.fromkeys(PARTS.values(), 0.0))

    def timed(part, operator):
        def run(*args, **options):
            start = time.perf_counter()
            result = operator(*args, **options)
            spent[part] += time.perf_counter() - start
            return result

        return run

    stream = decoder.stream(prompt, tokens, eos_token_id=-1)
    next(stream)  # the prefill
    try:
        for name, part in PARTS.items():
            setattr(decoder.step, name, timed(part, getattr(decoder.step, name)))
        start = time.perf_counter()
        for _ in stream:
            pass
        total = time.perf_counter() - start
    finally:
        for name in PARTS:
            delattr(decoder.step, name)  # the class's own operators again
    spent["drafts and acceptance"] = decoder.stats.seconds["draft"] + decoder.stats.seconds["accept"]
    spent["Python and the rest"] = total - sum(spent.values())
    return {part: 1e3 * seconds / max(decoder.stats.steps, 1) for part, seconds in spent.items()}
