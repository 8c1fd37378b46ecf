"""Alignment folders: two knowledge graphs, their links and what is known of their entities."""
