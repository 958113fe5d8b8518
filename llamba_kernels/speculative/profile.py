"""Where the time of a decoding step goes."""

import time
from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

from torch.nn import functional

from ..models import step
from . import decode
from .decode import SpeculativeDecoder

# part of a step -> the function that it spends its time in, as (module that calls it, name there)
PARTS = {
    "linear layers": (step, "skinny_linear"),
    "mamba2_verify": (step, "mamba2_verify"),
    "attention": (functional, "scaled_dot_product_attention"),
    "norms": (step, "gated_rms_norm"),
    "acceptance": (decode, "speculative_accept"),
}


def profile_step(decoder: SpeculativeDecoder, prompt: list[int], tokens: int = 32) -> dict[str, float]:
    """Milliseconds per verify step of each part while `tokens` tokens are decoded greedily; the prefill is left out.

    The functions are wrapped in a clock meanwhile: torch's profiler writes to standard error whatever one does.
    """
    spent = Counter(dict.fromkeys(PARTS, 0.0))

    def timed(part, function):
        def run(*args, **options):
            start = time.perf_counter()
            result = function(*args, **options)
            spent[part] += time.perf_counter() - start
            return result

        return run

    stream = decoder.stream(prompt, tokens, eos_token_id=-1)
    next(stream)  # the prefill
    with ExitStack() as patches:
        for part, (module, name) in PARTS.items():
            patches.enter_context(patch.object(module, name, timed(part, getattr(module, name))))
        start = time.perf_counter()
        for _ in stream:
            pass
        total = time.perf_counter() - start
    spent["Python and the rest"] = total - sum(spent.values())
    return {part: 1e3 * seconds / max(decoder.stats.steps, 1) for part, seconds in spent.items()}
