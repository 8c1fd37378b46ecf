"""Models, losses, kernels and metrics. Imports torch and NumPy; writes no files and parses no arguments."""
