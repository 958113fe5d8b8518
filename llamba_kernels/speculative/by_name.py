"""Drafts as the command line names them."""

from transformers import PreTrainedTokenizerBase

from ..models import LlambaForCausalLM, load_model, load_tokenizer
from ..models.loading import model_source
from .drafts import NoDraft, PromptLookup
from .model_draft import ModelDraft, first_difference, first_layers


def draft_by_name(name: str, target: LlambaForCausalLM, tokenizer: PreTrainedTokenizerBase, target_name: str):
    """What SpeculativeDecoder takes as `draft`, for any batch.

    Args:
        name: lookup, none, first:N (the target's own first N layers), or a model's folder or hub id.
        tokenizer, target_name: of the target; a draft model's own tokenizer must agree with it.
    Raises: ValueError.
    """
    check_name(name)
    own = own_draft_by_name(name, target)
    if own is not None:
        return own
    difference = first_difference(tokenizer, load_tokenizer(name))
    if difference is not None:
        raise ValueError(f"draft: {name} must have the tokenizer of {target_name}; got one where {difference}")
    return ModelDraft(load_model(name, target.dtype))


def check_name(name: str) -> None:
    """Refuses what names no draft, before any model is loaded for it."""
    if name in ("lookup", "none"):
        return
    if name.startswith("first:"):
        if not name.removeprefix("first:").isdecimal():
            raise ValueError(f"draft: first:N must have a number of layers as N; got {name}")
        return
    try:
        model_source("draft", name)
    except ValueError:
        raise ValueError(
            f"draft: name must be lookup, none, first:N, a model's folder or a hub id owner/name; got {name!r}"
        ) from None


def own_draft_by_name(name: str, target: LlambaForCausalLM):
    """Likewise for a name that `check_name` lets through; None: of a model that is still to be loaded."""
    if name == "lookup":
        return PromptLookup
    if name == "none":
        return NoDraft
    return ModelDraft(first_layers(target, int(name.removeprefix("first:")))) if name.startswith("first:") else None
