"""Load one of our models or one of a family from a folder or the hub, and say in one sentence what is wrong with it."""

import contextlib
import functools
import re
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from . import families
from .checkpoint import FLOATS, Weights, check_finite, check_generation_config, find, line, read_settings
from .config import LlambaConfig, check_fields
from .families.layout import Layout, Rule, rules
from .model import LlambaForCausalLM

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "merges.txt", "tekken.json")


def load_model(path_or_id: str | Path, dtype: torch.dtype = torch.float32) -> LlambaForCausalLM:
    """The model in a folder or under a hub id, in eval mode: one of ours, or of a family in models/families.

    Weights are read tensor by tensor, from safetensors or pickled files, into parameters of `dtype`: there is never a
    second copy of them. `model.config.origin` keeps what `export_model` needs to write them as they were.
    """
    source = model_source("load_model", path_or_id)
    if dtype not in DTYPES:
        raise TypeError(f"load_model: dtype must be a torch dtype, float32, bfloat16, float16 or float64; got {dtype}")
    with quiet():
        config, own = _config(source)
        check_generation_config(source)
        weights = Weights(source)
        if not own:
            config.origin = {**config.origin, **families.inspect(config, weights.stored)}
        with torch.device("meta"):
            model = LlambaForCausalLM(config)
        shapes = families.parameter_shapes(model)
        known = rules(Layout(), shapes) if own else families.names(config, shapes)
        _check_stored(weights, known, shapes, config.tie_word_embeddings)
        _fill(model, weights, known, dtype)
        _set_generation_config(model, source)
    check_finite(source, model)
    return model.eval()


def stored_dtype(path_or_id: str | Path) -> torch.dtype:
    """The narrowest dtype that holds every value of a checkpoint."""
    stored = Weights(model_source("load_model", path_or_id)).stored.values()
    dtypes = [FLOATS[entry.dtype] for entry in stored if entry.dtype in FLOATS]
    return functools.reduce(torch.promote_types, dtypes or [torch.float32])


def load_tokenizer(path_or_id: str | Path, model: LlambaForCausalLM | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer stored with a model. model: what its tokens are for, which must have an embedding for each."""
    source = model_source("load_tokenizer", path_or_id)
    # transformers would make an empty tokenizer of what some config.json names.
    if Path(source).is_dir() and not any(any(Path(source).glob(pattern)) for pattern in TOKENIZER_FILES):
        raise ValueError(f"load_tokenizer: path_or_id must hold a tokenizer; got {source}, which has no file of one")
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


def _config(source: str) -> tuple[LlambaConfig, bool]:
    """The configuration, and whether it is one of our own folders."""
    settings = read_settings(source, "config.json", required=True)
    if settings is None:
        raise ValueError(f"load_model: path_or_id must hold a model's config.json; got {source}, which has none")
    if (mamba_config := read_settings(source, "mamba_config.json")) is not None:
        settings["mamba_config"] = mamba_config
    kind = settings.get("model_type")
    own = kind == LlambaConfig.model_type
    try:
        if own:
            check_fields(settings)
        config = LlambaConfig.from_dict(settings) if own else families.config_of(settings)
    except Exception as error:  # transformers' own checks of its configurations raise several kinds, over several lines
        text = line(error)
        if text.startswith(("LlambaConfig: ", "load_model: ")):
            raise ValueError(text) from error
        raise ValueError(f"load_model: path_or_id must hold a model's config.json; got {source}: {text}") from error
    if config is None:
        kinds = ", ".join(families.MODEL_TYPES)
        raise ValueError(
            f"load_model: path_or_id must hold a model of type {kinds} or {LlambaConfig.model_type}; got {kind}"
        )
    config.name_or_path = source
    return config, own


def _check_stored(weights: Weights, known: list[Rule], shapes: dict, tied: bool) -> None:
    """Every tensor there, of its shape and floating point, and none without a place; told from the files' headers."""
    source, stored = weights.source, weights.stored
    expected = {rule.theirs: rule.shape(shapes) for rule in known}
    for name in sorted(stored.keys() & expected.keys()):
        found, wanted, dtype = stored[name].shape, expected[name], stored[name].dtype
        if found != wanted:
            raise ValueError(
                f"load_model: {name} must have shape {wanted} as config.json says; got {found} in {source}"
            )
        if dtype not in FLOATS:
            raise ValueError(f"load_model: {name} must be one of {', '.join(FLOATS)}; got {dtype} in {source}")
    if missing := sorted(expected.keys() - stored.keys()):
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(f"load_model: {source} must hold every parameter; got no {missing[0]}{others}")
    # A weight without a place would be dropped, and the model would not be the one that was trained.
    if surplus := sorted(name for name in stored.keys() - expected.keys() if not _is_derived(name, tied)):
        others = f" and {len(surplus) - 1} others" if len(surplus) > 1 else ""
        raise ValueError(
            f"load_model: {source} must hold only parameters that config.json has a place for; got {surplus[0]}{others}"
        )


def _is_derived(name: str, tied: bool) -> bool:
    """Whether an older checkpoint stores under `name` what the configuration or the embedding gives anyway."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def _fill(model: LlambaForCausalLM, weights: Weights, known: list[Rule], dtype: torch.dtype) -> None:
    """Give each parameter of a model on the meta device its memory and its values, in the files' order."""
    order = {name: i for i, name in enumerate(weights.stored)}
    for rule in sorted(known, key=lambda rule: order[rule.theirs]):
        parts = [model.get_parameter(name) for name in rule.ours]
        whole = torch.empty(
            rule.shape({name: part.shape for name, part in zip(rule.ours, parts, strict=True)}), dtype=dtype
        )
        weights.read(rule.theirs, whole)
        rows = [len(part) for part in parts]
        for name, values in zip(rule.ours, whole.split(rows) if len(parts) > 1 else [whole], strict=True):
            owner, _, field = name.rpartition(".")
            # Rows of a joined tensor that stayed views of it could not be freed, saved or moved one by one.
            values = values.clone() if len(parts) > 1 else values
            setattr(model.get_submodule(owner), field, nn.Parameter(values))
    model.tie_weights()
    model.config.dtype = dtype
    if model.config.tie_word_embeddings and "lm_head.weight" in weights.stored:
        if not weights.equals("lm_head.weight", model.lm_head.weight):
            raise ValueError(
                f"load_model: lm_head.weight must equal the embedding, as tie_word_embeddings says; got others in "
                f"{weights.source}"
            )


def _set_generation_config(model: LlambaForCausalLM, source: str) -> None:
    path = find(source, "generation_config.json")
    if path is None:
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(path.parent)
    except Exception as error:  # whatever of its fields transformers stumbles over
        raise ValueError(
            f"load_model: generation_config.json of {source} must be one that transformers reads; got {line(error)}"
        ) from error


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
