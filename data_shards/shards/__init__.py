"""The shard format: manifest, index, tar, and the jobs that write them."""
