"""Attention whose dropout belongs to the sample as one operator, in memory linear in the length."""
