"""Runs beside each other: paired tests, resampled scores, differences of settings and answers."""
