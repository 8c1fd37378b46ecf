"""DeepSpeed: its processes, its configuration, the engine it wraps around a model, and what spans the global batch."""
