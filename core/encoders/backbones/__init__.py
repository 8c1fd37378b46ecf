"""Encoders of any size that others trained, on words, sound and pictures."""
