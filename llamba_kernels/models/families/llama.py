"""Llama and Mistral (Zephyr, SmolLM2): our own names; Mistral adds a sliding window."""

from transformers import LlamaConfig, MistralConfig

from ..config import check_fields
from .fields import ATTENTION, SIZES, copied
from .layout import Layout

NAME = "llama"
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig}
OWN = {"llama": ("attention_bias", "mlp_bias"), "mistral": ("sliding_window",)}  # the other one's are not read


def matches(settings: dict) -> bool:
    return settings.get("model_type") in tuple(CONFIGS)


def config(settings: dict) -> dict:
    check_fields(settings)  # transformers' own checks let much through, and say less
    kind = settings["model_type"]
    theirs = CONFIGS[kind].from_dict(settings)
    return {
        **copied(theirs, *SIZES, *ATTENTION, "intermediate_size", "head_dim", "hidden_act"),
        **copied(theirs, *OWN[kind]),
        "rope_parameters": dict(theirs.rope_parameters),
    }


def layout(config) -> Layout:
    return Layout()
