"""What a call of the decoder asks for: checked as a whole before anything changes."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache import check_int
from ..models import LlambaForCausalLM
from .sampling import Sampling


@dataclass(frozen=True)
class Request:
    """Options that all sequences of a call share; `SpeculativeDecoder.stream` describes them."""

    max_new_tokens: int
    sampling: Sampling
    seed: int
    eos: frozenset[int]
    window: int
    return_logits: bool


def check_prompt(prompt: Iterable[int] | Tensor, vocab: int, max_tokens: int, max_new_tokens: int) -> list[int]:
    """The prompt's ids."""
    if isinstance(prompt, str):
        raise TypeError("generate: prompt must be token ids, such as tokenizer(text)['input_ids']; got a str")
    if not isinstance(prompt, (Tensor, Iterable)):
        raise TypeError(f"generate: prompt must be one sequence of ids; got {type(prompt).__name__}")
    prompt = torch.as_tensor(prompt if isinstance(prompt, Tensor) else list(prompt), dtype=torch.int64)
    if prompt.dim() != 1:
        raise ValueError(f"generate: prompt must be one sequence of ids, (n,); got shape {tuple(prompt.shape)}")
    if len(prompt) < 1:
        raise ValueError("generate: prompt must have at least one token; got none")
    if int(prompt.min()) < 0 or int(prompt.max()) >= vocab:
        wrong = int(prompt.min()) if int(prompt.min()) < 0 else int(prompt.max())
        raise ValueError(f"generate: prompt must hold ids from 0 to vocab_size - 1 = {vocab - 1}; got {wrong}")
    check_int("generate: max_new_tokens", max_new_tokens, 1, max_tokens)
    if len(prompt) + max_new_tokens > max_tokens:
        raise ValueError(
            f"generate: prompt + max_new_tokens must be at most max_tokens = {max_tokens}; "
            f"got {len(prompt)} + {max_new_tokens}"
        )
    return prompt.tolist()


def check_drafts(drafts: list[int], most: int, vocab: int) -> None:
    """A draft is anybody's code: refused before the step opens, so that the slot stays usable."""
    rule = f"generate: drafts must be a list of at most {most} ints from 0 to vocab_size - 1 = {vocab - 1}"
    if not isinstance(drafts, list):
        raise TypeError(f"{rule}; got {type(drafts).__name__}")
    if len(drafts) > most:
        raise ValueError(f"{rule}; got {len(drafts)}")
    for token in drafts:
        if type(token) is not int:
            raise TypeError(f"{rule}; got one of {type(token).__name__}")
        if not 0 <= token < vocab:
            raise ValueError(f"{rule}; got {token} among them")


def stop_tokens(model: LlambaForCausalLM, eos_token_id: int | Iterable[int] | None) -> frozenset[int]:
    """The ids that end a sequence: those given, else the model's."""
    if eos_token_id is None:
        eos_token_id = model.generation_config.eos_token_id
        eos_token_id = model.config.eos_token_id if eos_token_id is None else eos_token_id
    if eos_token_id is None:
        return frozenset()
    return frozenset([eos_token_id] if isinstance(eos_token_id, int) else eos_token_id)
