"""Processes, files and printing: configuration, the training loop, evaluation and reports."""

from core import threads

threads.settle()  # before anything here loads torch
