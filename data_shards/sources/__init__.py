"""Readers of raw layouts: what lies in a file or folder, as rows and samples."""
