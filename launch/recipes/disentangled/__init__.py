"""Recipes of the models that take representations apart or hold them to what they share."""
