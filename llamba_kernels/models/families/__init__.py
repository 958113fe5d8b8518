"""The checkpoint families that load: each knows its config.json, as a LlambaConfig, and its tensors' names.

A family is a module with
    NAME                 what an error calls it and `config.origin["family"]` holds
    matches(settings)    whether a config.json is one of its own
    config(settings)     the fields of LlambaConfig; ValueError for what the family has and is not run
    layout(config)       a `Layout`: how its tensors are named, and which of them hold several of ours
`settings` is config.json with the object of mamba_config.json, where there is one, as "mamba_config".
"""

import copy
from collections import Counter
from collections.abc import Mapping

import torch

from ..checkpoint import Stored
from ..config import LlambaConfig
from . import (
    bamba,
    falcon_mamba,
    granite,
    jamba,
    llama,
    mamba,
    mamba2,
    mamba_in_llama,
    mamba_ssm,
    nemotron_h,
)
from .layout import Layout, Rule, rules

MODULES = (mamba_in_llama, mamba_ssm, llama, mamba, mamba2, falcon_mamba, bamba, jamba, nemotron_h, granite)
FAMILIES = {module.NAME: module for module in MODULES}
MODEL_TYPES = sorted({*llama.CONFIGS, *(FAMILIES.keys() - {mamba_in_llama.NAME, mamba_ssm.NAME, llama.NAME})})


def config_of(settings: dict) -> LlambaConfig | None:
    """The configuration of a foreign config.json, which stays in its `origin`; None: of none of the families."""
    for module in MODULES:
        if module.matches(settings):
            read = module.config(copy.deepcopy(settings))  # a copy, as transformers' classes write into what they get
            return LlambaConfig(**read, origin={"family": module.NAME, "config": settings})
    return None


def inspect(config: LlambaConfig, stored: Mapping[str, Stored]) -> dict:
    """What the stored tensors tell beyond the settings, to add to `config.origin`.

    dtype: that of most of them; dtypes: of the others, by name. renames: other prefixes than the family's own. tied:
    whether a tied lm_head is stored none the less. format: of the files.
    """
    module = FAMILIES[config.origin["family"]]
    counts = Counter(entry.dtype for entry in stored.values())
    dtype = counts.most_common(1)[0][0] if counts else "F32"
    renames = [
        [usual, other]
        for usual, other in getattr(module, "ALIASES", ())
        if any(name.startswith(other) for name in stored) and not any(name.startswith(usual) for name in stored)
    ]
    return {
        "dtype": dtype,
        "dtypes": {name: entry.dtype for name, entry in stored.items() if entry.dtype != dtype},
        "renames": renames,
        "tied": config.tie_word_embeddings and "lm_head.weight" in stored,
        "format": "safetensors" if all(entry.path.suffix == ".safetensors" for entry in stored.values()) else "bin",
        **(module.inspect(stored) if hasattr(module, "inspect") else {}),
    }


def names(config: LlambaConfig, shapes: Mapping[str, tuple[int, ...]] | None = None) -> list[Rule]:
    """A rule for each tensor of the layout that `config.origin` tells of; together they name each of our parameters."""
    layout = FAMILIES[config.origin["family"]].layout(config)
    renames = tuple(map(tuple, config.origin.get("renames", ())))
    layout = Layout((*layout.renames, *renames), layout.joined)
    return rules(layout, parameter_shapes(on_meta(config)) if shapes is None else shapes)


def foreign_shapes(config: LlambaConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors of a checkpoint with this configuration, in its family's own layout."""
    shapes = parameter_shapes(on_meta(config))
    return {rule.theirs: rule.shape(shapes) for rule in names(config, shapes)}


def parameter_shapes(model) -> dict[str, tuple[int, ...]]:
    """Our own names, without a tied lm_head."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: tuple(parameter.shape) for name, parameter in parameters if name not in tied}


def on_meta(config: LlambaConfig):
    from ..model import LlambaForCausalLM  # here, because a config alone should not import the model

    with torch.device("meta"):
        return LlambaForCausalLM(config)
