"""Models that take representations apart or hold them to the information that they share."""
