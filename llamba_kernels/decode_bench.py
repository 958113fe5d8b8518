"""Greedy decoding of held-out text at several windows: speed, tokens per step, and whether all say the same."""

import statistics

from .distill.text import read_text
from .speculative import SpeculativeDecoder

PROMPT_TOKENS = 64


def held_out_prompts(tokenizer, data, count: int, length: int = PROMPT_TOKENS) -> list[list[int]]:
    """The first tokens of `count` held-out chunks, spread over the whole text."""
    chunks = read_text(data).held_out
    prompts = []
    for i in range(count):
        chunk = chunks[i * len(chunks) // count]
        start = (i * 4096) % max(1, len(chunk) - 4096)  # when there are fewer chunks than prompts, from another place
        prompts.append(tokenizer(chunk[start : start + 4096])["input_ids"][:length])
    return prompts


def decode_bench(
    model, prompts: list[list[int]], windows: list[int], max_new_tokens: int, draft=None
) -> tuple[list[dict], list[list[int]]]:
    """One row per window, window 1 (plain decoding) first: tokens/s over the prompts, tokens per step, identical.

    And the tokens that plain decoding gave after each prompt. draft: as in `SpeculativeDecoder`.
    """
    windows = [1, *(window for window in windows if window != 1)]
    longest = max(map(len, prompts)) + max_new_tokens
    plain, rows = None, []
    for window in windows:
        decoder = SpeculativeDecoder(model, window, draft, max_tokens=longest)
        results = [decoder.generate(prompt, max_new_tokens, eos_token_id=-1) for prompt in prompts]
        outputs = [result.tokens for result in results]
        plain = outputs if plain is None else plain
        speeds = [result.stats.tokens_per_second for result in results]
        rows.append(
            {
                "window": window,
                "tokens_per_second": statistics.median(speeds),
                "slowest": min(speeds),
                "fastest": max(speeds),
                "acceptance_length": statistics.mean(result.stats.acceptance_length for result in results),
                "identical": outputs == plain,
            }
        )
    return rows, plain
