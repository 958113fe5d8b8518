"""Kernels, exact speculative decoding and distillation for Mamba-2/attention hybrids.

Importing the package registers its model with transformers' AutoConfig and AutoModelForCausalLM. The operators alone
are in `llamba_kernels.ops`.
"""

from .export import export_model
from .models import LlambaConfig, LlambaForCausalLM, load_model, load_tokenizer
from .speculative import PromptLookup, SpeculativeDecoder

__version__ = "0.1.0"

__all__ = [
    "LlambaConfig",
    "LlambaForCausalLM",
    "PromptLookup",
    "SpeculativeDecoder",
    "export_model",
    "load_model",
    "load_tokenizer",
]
