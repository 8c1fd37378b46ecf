"""Recipes of the models in which one modality attends to another."""
