"""Models, losses, kernels and metrics on torch and NumPy; and what all packages share: files,
words, exit codes."""
