"""Dropout by sample as one operator: its bits, and the kernel that draws, multiplies and scales."""
