"""Load a hybrid or a plain Llama from a folder or the hub, and say in one sentence what is wrong with it."""

import contextlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from .config import LlambaConfig
from .model import LlambaForCausalLM


def load_model(path_or_id: str | Path, dtype: torch.dtype = torch.float32) -> LlambaForCausalLM:
    """The model in a folder or under a hub id, in eval mode: one of ours, or a Llama (all layers attention)."""
    source = model_source("load_model", path_or_id)
    with quiet():
        config = _config(source)
        try:
            # Differing sizes are let through here because transformers' own error names neither of the two.
            model, info = LlambaForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
            )
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"load_model: path_or_id must hold readable weights; got {source}: {_line(error)}"
            ) from error
    _check_weights(source, info, config.tie_word_embeddings)
    return model.eval()


def load_tokenizer(path_or_id: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer stored with a model."""
    source = model_source("load_tokenizer", path_or_id)
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"load_tokenizer: path_or_id must hold a tokenizer; got {source}: {_line(error)}") from error


def model_source(caller: str, path_or_id: str | Path) -> str:
    """The folder or hub id, as transformers wants it; anything else would be looked up on the hub for nothing."""
    if Path(path_or_id).is_dir():
        return str(path_or_id)
    if isinstance(path_or_id, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path_or_id):
        return path_or_id
    raise ValueError(f"{caller}: path_or_id must be a folder or a hub id owner/name; got {path_or_id}")


def _config(source: str) -> LlambaConfig:
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith("LlambaConfig:"):
            raise
        raise ValueError(
            f"load_model: path_or_id must hold a model's config.json; got {source}: {_line(error)}"
        ) from error
    if config.model_type == LlambaConfig.model_type:
        return config
    if config.model_type == "llama":
        return LlambaConfig.from_llama(config)
    raise ValueError(
        f"load_model: path_or_id must hold a model of type llama or {LlambaConfig.model_type}; got {config.model_type}"
    )


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


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
