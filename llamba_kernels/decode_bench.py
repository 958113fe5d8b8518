"""Greedy decoding of held-out text at several windows: speed, tokens per step, and whether all say the same."""

import statistics
from math import prod

import torch
from rich.console import Console

from .distill.text import read_text
from .memory import available_bytes, decoding_bytes
from .models import LlambaForCausalLM
from .models.families import foreign_shapes
from .models.presets import preset_config
from .models.random_weights import random_model
from .speculative import SpeculativeDecoder
from .speculative.by_name import check_name, own_draft_by_name

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


def random_prompts(vocab_size: int, count: int, seed: int = 0, length: int = PROMPT_TOKENS) -> list[list[int]]:
    return torch.randint(vocab_size, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()


def make_preset(
    name: str, dtype: torch.dtype, window: int, max_new_tokens: int, draft: str, seed: int, console: Console
) -> tuple[LlambaForCausalLM, object]:
    """A preset with random weights and its draft; says what it takes before it asks for any of it.

    Raises: ValueError (no such preset, a model that is not run, too little memory, a draft with a tokenizer).
    """
    config = preset_config(name)
    needed = decoding_bytes(config, PROMPT_TOKENS + max_new_tokens, window, dtype)
    parameters, total, available = (
        sum(map(prod, foreign_shapes(config).values())),
        sum(needed.values()),
        available_bytes(),
    )
    parts = ", ".join(f"{part} {nbytes:,}" for part, nbytes in needed.items())
    console.print(
        f"{name}: {parameters:,} parameters; {parts}: {total:,} of {available:,} bytes available",
        soft_wrap=True,
        highlight=False,
    )
    if total > available:
        raise ValueError(
            f"bench: preset must fit the {available:,} bytes of memory that are available; got {name} in "
            f"{str(dtype).removeprefix('torch.')}, which takes {total:,}"
        )
    check_name(draft)
    if draft not in ("lookup", "none") and not draft.startswith("first:"):
        raise ValueError(
            f"bench: draft must be lookup, none or first:N with a preset, which has no tokenizer; got {draft}"
        )
    model = random_model(config, dtype, seed)
    return model, own_draft_by_name(draft, model)


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
        del decoder  # its buffers, before the next one asks for its own
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
