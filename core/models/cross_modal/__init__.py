"""Models in which one modality attends to another."""
