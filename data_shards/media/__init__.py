"""Sound and pictures stored in shards as they are, and decoded when a batch is made."""
