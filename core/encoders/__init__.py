"""Layers that turn one modality into vectors."""
