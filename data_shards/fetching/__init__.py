"""Bytes from a server into a local file: in ranges, many at a time, again where they fail."""
