"""A download under way, whose chunks come in any order: a file of the final size, with a byte for
each chunk behind it that says whether the chunk is there.

Whoever goes on with it, this process or a later one, fetches the chunks that are missing. A chunk is
marked after it was written; what a power cut loses all the same is found by the shard's checksum.
"""

from __future__ import annotations

import os
from typing import IO, Any

_LENGTH = 8  # bytes of the chunk's size, first behind the content
_PIECE = 1 << 20  # bytes that are hashed at a time


class Unfinished:
    """The unfinished download of one file, which one process at a time holds.

    Args:
        file: open for reading and writing.
        size: bytes of the finished file.
        chunk: bytes of a chunk; an earlier process may have begun with another.
    """

    def __init__(self, file: IO[bytes], size: int, chunk: int):
        self.file = file
        self.size = size
        self.descriptor = file.fileno()
        found = os.fstat(self.descriptor).st_size
        begun = self._chunk_of(found)
        self.chunk = begun or chunk
        self.chunks = -(-size // self.chunk)
        if begun:
            return
        # A file without marks is of a version that fetched from the front, and ended where it did.
        is_front = found <= size
        done = (size if found == size else found // chunk * chunk) if is_front else 0
        marks = bytes(self.range(number)[1] <= done for number in range(self.chunks))
        os.ftruncate(self.descriptor, size)
        os.pwrite(self.descriptor, self.chunk.to_bytes(_LENGTH, "little") + marks, size)

    def _chunk_of(self, found: int) -> int:
        """The size of a chunk that the marks are for; 0 where there are none."""
        body = os.pread(self.descriptor, _LENGTH, self.size)
        chunk = int.from_bytes(body, "little") if len(body) == _LENGTH else 0
        if not 0 < chunk <= 2**40:
            return 0
        is_whole = found == self.size + _LENGTH + -(-self.size // chunk)
        return chunk if is_whole else 0

    def range(self, number: int) -> tuple[int, int]:
        """First byte of a chunk, and the one behind its last."""
        return number * self.chunk, min((number + 1) * self.chunk, self.size)

    def missing(self) -> list[int]:
        """The chunks that have not come."""
        marks = os.pread(self.descriptor, self.chunks, self.size + _LENGTH)
        return [number for number, mark in enumerate(marks) if not mark]

    def mark(self, first: int, end: int) -> None:
        """The bytes from ``first`` to ``end`` are there: so are the chunks that lie in them."""
        for number in range(-(-first // self.chunk), self.chunks):
            if self.range(number)[1] > end:
                break
            os.pwrite(self.descriptor, b"\1", self.size + _LENGTH + number)

    def add_to(self, digest: Any, number: int) -> None:
        """Add the bytes of a chunk to a checksum of ``hashlib``."""
        start, stop = self.range(number)
        while start < stop:
            piece = os.pread(self.descriptor, min(_PIECE, stop - start), start)
            digest.update(piece)
            start += len(piece)

    def finish(self) -> None:
        """Take the marks away, and have the content last."""
        os.ftruncate(self.descriptor, self.size)
        os.fsync(self.descriptor)
