"""Load a hybrid or a plain Llama from a folder or the hub, and say in one sentence what is wrong with it."""

import contextlib
import re
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from .checkpoint import check_finite, check_generation_config, check_stored, line, read_settings
from .config import LlambaConfig, check_fields
from .model import LlambaForCausalLM

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_model(path_or_id: str | Path, dtype: torch.dtype = torch.float32) -> LlambaForCausalLM:
    """The model in a folder or under a hub id, in eval mode: one of ours, or a Llama (all layers attention)."""
    source = model_source("load_model", path_or_id)
    if dtype not in DTYPES:
        raise TypeError(f"load_model: dtype must be a torch dtype, float32, bfloat16, float16 or float64; got {dtype}")
    with quiet():
        config = _config(source)
        check_generation_config(source)
        with torch.device("meta"):
            expected = LlambaForCausalLM(config).state_dict()
        check_stored(source, expected)
        try:
            # Differing sizes are let through here because transformers' own error names neither of the two.
            model, info = LlambaForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
            )
        except MemoryError:
            raise
        except Exception as error:  # whatever its parsers raise: OSError, KeyError, UnpicklingError, ...
            raise ValueError(
                f"load_model: path_or_id must hold readable weights; got {source}: {line(error)}"
            ) from error
    _check_weights(source, info, config.tie_word_embeddings)
    check_finite(source, model)
    return model.eval()


def load_tokenizer(path_or_id: str | Path, model: LlambaForCausalLM | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer stored with a model. model: what its tokens are for, which must have an embedding for each."""
    source = model_source("load_tokenizer", path_or_id)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # tokenizers raises bare Exceptions, transformers what the JSON makes it stumble over
        raise ValueError(f"load_tokenizer: path_or_id must hold a tokenizer; got {source}: {line(error)}") from error
    # Added tokens do not count: a padding token beyond the vocabulary is common, and never reaches the model.
    if model is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"load_tokenizer: path_or_id must hold a tokenizer of at most the model's vocab_size = "
            f"{model.config.vocab_size} tokens; got {tokenizer.vocab_size} in {source}"
        )
    return tokenizer


def model_source(caller: str, path_or_id: str | Path) -> str:
    """The folder or hub id, as transformers wants it; anything else would be looked up on the hub for nothing."""
    if not isinstance(path_or_id, (str, Path)):
        raise TypeError(f"{caller}: path_or_id must be a str or a Path; got {type(path_or_id).__name__}")
    text = str(path_or_id)
    if text and "\0" not in text and Path(text).is_dir():
        return text
    if isinstance(path_or_id, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path_or_id):
        return path_or_id
    shown = text if text.isprintable() and text else repr(text)
    raise ValueError(f"{caller}: path_or_id must be a folder or a hub id owner/name; got {shown}")


def _config(source: str) -> LlambaConfig:
    settings = read_settings(source, "config.json", required=True)
    if settings is None:
        raise ValueError(f"load_model: path_or_id must hold a model's config.json; got {source}, which has none")
    kind = settings.get("model_type")
    if kind not in ("llama", LlambaConfig.model_type):
        raise ValueError(
            f"load_model: path_or_id must hold a model of type llama or {LlambaConfig.model_type}; got {kind}"
        )
    try:
        check_fields(settings)
        config = AutoConfig.from_pretrained(source)
        return config if kind == LlambaConfig.model_type else LlambaConfig.from_llama(config)
    except Exception as error:  # transformers' own checks of a Llama's raise several kinds, over several lines
        text = line(error)
        if text.startswith("LlambaConfig: "):
            raise ValueError(text) from error
        raise ValueError(f"load_model: path_or_id must hold a model's config.json; got {source}: {text}") from error


def _check_weights(source: str, info: dict, tied: bool):
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"load_model: {name} must have shape {tuple(expected)} as config.json says; got {tuple(found)} in {source}"
        )
    if missing := sorted(info["missing_keys"]):
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(f"load_model: {source} must hold every parameter; got no {missing[0]}{others}")
    # A weight without a place would be dropped, and the model would not be the one that was trained.
    if surplus := sorted(n for n in info["unexpected_keys"] if not _is_derived(n, tied)):
        others = f" and {len(surplus) - 1} others" if len(surplus) > 1 else ""
        raise ValueError(
            f"load_model: {source} must hold only parameters that config.json has a place for; got {surplus[0]}{others}"
        )


def _is_derived(name: str, tied: bool) -> bool:
    """Whether an older Llama checkpoint stores under `name` what the configuration or the embedding gives anyway."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


@contextlib.contextmanager
def quiet():
    """Silence transformers' load report and progress bar: what matters of them is raised, the rest is noise."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
