"""Plain PyTorch references for the operators of llamba_kernels; they import nothing of it."""
