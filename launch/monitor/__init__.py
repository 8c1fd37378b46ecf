"""Watching over the ranks of a run: heartbeats, requests to stop, throughput, divergence."""
