"""Kernels, speculative decoding and distillation for Mamba/attention hybrids."""

__version__ = "0.1.0"
