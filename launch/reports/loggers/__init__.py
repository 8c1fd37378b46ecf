"""Where a run's numbers go besides its own directory: one small interface, a file for each service."""
