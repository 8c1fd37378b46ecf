"""Scores of whole arrays, in NumPy."""
