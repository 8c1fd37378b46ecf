"""DeepSpeed: its processes, its configuration, and the engine that it wraps around a model and its losses."""
