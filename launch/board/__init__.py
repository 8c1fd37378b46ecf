"""A page over all runs and studies of a folder, on the loopback interface."""
