"""Other libraries' models on this package's kernels."""
