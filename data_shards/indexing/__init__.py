"""Tars that something else wrote, looked through once so that they can be streamed."""
