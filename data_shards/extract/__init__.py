"""Clips to features: ``concord extract``, and the recipe by which new clips are treated alike."""
