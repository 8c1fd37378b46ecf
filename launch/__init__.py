"""Processes, files and printing: configuration, the training loop, evaluation and reports."""
