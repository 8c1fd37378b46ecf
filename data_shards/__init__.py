"""Raw files to WebDataset shards, and shards to batches."""
