"""Where the time of a decoding step goes, by torch's own profiler."""

import time

from torch.profiler import ProfilerActivity, profile

from .decode import SpeculativeDecoder

# operator -> part of a step; what no entry names is counted as "Python and the rest"
PARTS = {
    "linear layers": ("llamba::skinny_linear",),
    "mamba2_verify": ("llamba::mamba2_verify",),
    "attention": ("aten::scaled_dot_product_attention",),
    "norms": ("llamba::gated_rms_norm",),
    "accept and cursor": ("llamba::speculative_accept", "llamba::cursor_begin", "llamba::cursor_commit"),
}


def profile_step(decoder: SpeculativeDecoder, prompt: list[int], tokens: int = 32) -> dict[str, float]:
    """Milliseconds per verify step of each part while `tokens` tokens are decoded greedily; the prefill is left out."""
    stream = decoder.stream(prompt, tokens, eos_token_id=-1)
    next(stream)  # the prefill
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in stream:
            pass
        milliseconds = 1e3 * (time.perf_counter() - start)
    spent = {event.key: event.cpu_time_total / 1e3 for event in profiler.key_averages()}
    steps = max(decoder.stats.steps, 1)
    parts = {part: sum(spent.get(key, 0.0) for key in keys) / steps for part, keys in PARTS.items()}
    parts["Python and the rest"] = max(0.0, milliseconds / steps - sum(parts.values()))
    return parts
