"""Hyper-parameter search with Ray Tune, on validation scores only."""

import launch  # noqa: F401  settles the threads of this process before anything here loads torch
