"""How much memory one input may ask for, counted before any of it is taken.

A file of fifteen bytes can claim an array of six gigabytes, and a megabyte of zeros unpacks to a
gigabyte. Each door counts what it is about to allocate against one budget, which follows from how
many bytes the input really has; what an honest file needs lies far within it.
"""

from __future__ import annotations

from core.command import Refused

FREE = 64 << 20  # bytes that any input may ask for, however small it is
GROWTH = 100  # bytes that one byte of a packed input may become; deflate reaches 1,030


class Budget:
    """Bytes that one input may still take.

    Args:
        limit: how many in all.
        where: the input, for the message.
        advice: what to do about an input that is honest and too large all the same.
    """

    def __init__(self, limit: int, where: str, advice: str = "fetch or write it again"):
        self.limit = limit
        self.where = where
        self.advice = advice
        self.taken = 0

    @staticmethod
    def of_packed(size: int, where: str, advice: str = "fetch or write it again") -> Budget:
        """For what unpacks from ``size`` bytes."""
        return Budget(FREE + GROWTH * size, where, advice)

    def claim(self, size: int, what: str) -> None:
        """Count ``size`` bytes for ``what``; Refused, before anything is allocated, when they are
        too many."""
        if size < 0 or self.taken + size > self.limit:
            raise Refused(
                f"{self.where}: {what} asks for {size} bytes, more than such a file can hold "
                f"({self.limit - self.taken} of {self.limit} are left); {self.advice}"
            )
        self.taken += size
