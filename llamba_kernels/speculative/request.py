"""What a call of the decoder asks for: checked as a whole before anything changes."""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor
from transformers import PreTrainedTokenizerBase

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
    stop: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase | None
    window: int
    return_logits: bool

    def ending(self, tokens: list[int]) -> str:
        """Why a sequence ends after these tokens, or nothing."""
        if tokens[-1] in self.eos:
            return "eos"
        if self.stop:
            text = self.tokenizer.decode(tokens)  # all of it: a tail's first characters may not be the text's
            if any(stop in text for stop in self.stop):
                return "stop"
        return "length" if len(tokens) == self.max_new_tokens else ""


def check_prompt(prompt: Iterable[int] | Tensor, vocab: int, max_tokens: int, max_new_tokens: int) -> list[int]:
    """The prompt's ids."""
    if isinstance(prompt, str):
        raise TypeError("generate: prompt must be token ids, such as tokenizer(text)['input_ids']; got a str")
    if isinstance(prompt, Tensor):
        if prompt.dim() != 1:
            raise ValueError(f"generate: prompt must be one sequence of ids, (n,); got shape {tuple(prompt.shape)}")
        prompt = prompt.tolist()
    if not isinstance(prompt, Iterable):
        raise TypeError(f"generate: prompt must be one sequence of ids; got {type(prompt).__name__}")
    prompt = list(prompt)
    if not prompt:
        raise ValueError("generate: prompt must have at least one token; got none")
    for token in prompt:
        if not isinstance(token, Integral):
            raise TypeError(f"generate: prompt must hold ints; got one of {type(token).__name__}")
        if not 0 <= token < vocab:
            raise ValueError(f"generate: prompt must hold ids from 0 to vocab_size - 1 = {vocab - 1}; got {token}")
    check_int("generate: max_new_tokens", max_new_tokens, 1, max_tokens)
    if len(prompt) + max_new_tokens > max_tokens:
        raise ValueError(
            f"generate: prompt + max_new_tokens must be at most max_tokens = {max_tokens}; "
            f"got {len(prompt)} + {max_new_tokens}"
        )
    return [int(token) for token in prompt]


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
    one = isinstance(eos_token_id, (Integral, str)) or not isinstance(eos_token_id, Iterable)
    tokens = [eos_token_id] if one else list(eos_token_id)
    for token in tokens:  # what equals no id would never end a sequence
        if not isinstance(token, Integral) or isinstance(token, bool):
            raise TypeError(f"generate: eos_token_id must be an int or several; got one of {type(token).__name__}")
    return frozenset(map(int, tokens))


def check_tokenizer(call: str, tokenizer) -> None:
    """Something that decodes ids, or nothing."""
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise TypeError(f"{call}: tokenizer must be one, as load_tokenizer gives it; got {type(tokenizer).__name__}")


def check_stop(stop: str | Iterable[str], tokenizer) -> tuple[str, ...]:
    """The stop strings; the text that may contain them is the tokenizer's."""
    stop = tuple(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else (stop,)
    for each in stop:
        if not isinstance(each, str) or not each:
            raise TypeError(f"generate: stop must be a string or several, none of them empty; got {each!r}")
    if stop and tokenizer is None:
        raise ValueError(f"generate: stop must come with the decoder's tokenizer; got {stop[0]!r} and no tokenizer")
    return stop
