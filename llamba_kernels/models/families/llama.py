"""Llama and Mistral (Zephyr, SmolLM2): our own names; Mistral adds a sliding window."""

from transformers import LlamaConfig, MistralConfig

from ..config import check_fields
from .fields import ATTENTION, SIZES, copied
from .layout import Layout

NAME = "llama"
CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig}


def matches(settings: dict) -> bool:
    return settings.get("model_type") in tuple(CONFIGS)


def config(settings: dict) -> dict:
    check_fields(settings)  # transformers' own checks let much through, and say less
    theirs = CONFIGS[settings["model_type"]].from_dict(settings)
    return {
        **copied(theirs, *SIZES, *ATTENTION, "intermediate_size", "head_dim", "hidden_act"),
        "attention_bias": getattr(theirs, "attention_bias", False),
        "mlp_bias": getattr(theirs, "mlp_bias", False),
        "sliding_window": getattr(theirs, "sliding_window", None),
        "rope_parameters": dict(theirs.rope_parameters),
    }


def layout(config) -> Layout:
    return Layout()
