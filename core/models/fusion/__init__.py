"""Models that encode each modality on its own and differ in how they fuse."""
