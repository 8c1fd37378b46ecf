"""What lies in a shard folder, counted and told to people."""
