"""The hybrid model: an ordinary transformers model, registered with AutoConfig and AutoModelForCausalLM."""

from .config import LlambaConfig
from .loading import load_model, load_tokenizer
from .model import LlambaForCausalLM, LlambaModel

__all__ = ["LlambaConfig", "LlambaForCausalLM", "LlambaModel", "load_model", "load_tokenizer"]
