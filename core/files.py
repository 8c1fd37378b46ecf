"""Files that are whole or absent, and checksums of their contents.

A file written here is first written beside its final path, under a hidden name, flushed to disk and
then renamed: whoever opens the final path finds the earlier contents or all of the new ones, also
after a crash or a power cut.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from core.file_access.regular_files import open_regular_file

_PIECE = 1 << 18  # bytes read at a time: stays in the processor's cache


def write_atomically(path: Path, content: str | bytes) -> None:
    """Make ``content``, text as UTF-8, the whole file at ``path``; a failure changes nothing."""
    encoded = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_file(path) as file:
        file.write(encoded)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write to, which appears as ``path`` when the block ends well, and not at all
    otherwise.

    It may be read and sought too. Two writers of one path at the same time are not kept apart: take
    a lock.
    """
    partial = partial_path(path)
    try:
        with naming(path), partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError that names no file name ``path``: what fails on an open file says only
    why."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def partial_path(path: Path) -> Path:
    """Where ``path`` is written before it is complete; only a killed process leaves it behind."""
    return path.with_name(f".{path.name}.partial")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of_bytes(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of the file at ``path`` as 64 hexadecimal digits, read in small pieces."""
    with open_regular_file(path) as file:
        return sha256_of_open_file(file)


def sha256_of_open_file(file: IO[bytes]) -> str:
    """SHA-256 of an open file on disk, from its first byte on; its position does not move."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE))
    position = 0
    while size := os.preadv(file.fileno(), [piece], position):
        digest.update(piece[:size])
        position += size
    return digest.hexdigest()
