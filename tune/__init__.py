"""Hyper-parameter search with Ray Tune, on validation scores only."""
