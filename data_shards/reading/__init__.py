"""From shards to rows in memory: the sampler's order, storage, and copying."""
