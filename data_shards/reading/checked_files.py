"""Which files of this machine were compared with their checksum: so each is hashed once, not once a
process.

One record per file says that a file of this device, inode, size and time had this SHA-256. A file
that was written since has another time, and is hashed again. Records are a convenience: where they
cannot be kept, or are lost or damaged, every process hashes for itself. They are believed only in a
file that this user alone can write.
"""

from __future__ import annotations

import fcntl
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from core.environment.caches import user_cache
from core.files import write_atomically

MOST = 1 << 20  # records that are kept; the oldest go
LOCKS = 16  # files hashed at the same time on one machine
# A file written this shortly before it was hashed may be written again without a change of its
# time, whose ticks are some milliseconds.
TICK = 100_000_000  # nanoseconds

_RECORD = np.dtype(
    [
        ("device", "<u8"),
        ("inode", "<u8"),
        ("size", "<i8"),
        ("time", "<i8"),  # nanoseconds
        ("sha256", "V32"),
        ("crc32", "<u8"),  # of the record up to here
    ]
)


class CheckedFiles:
    """The records of one place, shared by processes.

    Args:
        path: the file of records; None remembers nothing.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self._oldest: np.ndarray | None = None  # those there at the first look, by inode
        self._newer: set[bytes] = set()
        self._read = 0  # bytes of the file that were looked at

    @staticmethod
    def of_user() -> CheckedFiles:
        """For files that lie anywhere on this machine: data folders are often not ours to write."""
        return CheckedFiles(user_cache() / "concord" / "checked_files.bin")

    def knows(self, status: os.stat_result, sha256: str) -> bool:
        """Whether the file of this status was found to have this checksum."""
        record = _record(status, sha256)
        if self._oldest is None:
            self._oldest = self._load()
        if record in self._newer or _is_among(self._oldest, record):
            return True
        for found in self._load():
            self._newer.add(found.tobytes())
        return record in self._newer

    def add(self, status: os.stat_result, sha256: str) -> None:
        """Record that the file of this status has this checksum."""
        if self.path is None or time.time_ns() - status.st_mtime_ns < TICK:
            return
        record = _record(status, sha256)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                if size % len(record):
                    os.ftruncate(descriptor, size - size % len(record))
                os.write(descriptor, record)
            finally:
                os.close(descriptor)
            if size >= MOST * len(record):
                self._drop_older_half()
        except OSError:  # no room, or not ours to write
            return

    @contextmanager
    def one_at_a_time(self, status: os.stat_result) -> Iterator[None]:
        """Held by the one process of this machine that hashes the file of this status."""
        descriptor = self._open_lock(status.st_ino % LOCKS)
        try:
            if descriptor is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _open_lock(self, number: int) -> int | None:
        if self.path is None:
            return None
        path = self.path.with_name(f"{self.path.stem}-{number:02d}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return None

    def _load(self) -> np.ndarray:
        """The records that came since the last look, by inode."""
        nothing = np.empty(0, _RECORD)
        if self.path is None:
            return nothing
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                is_ours = status.st_uid == os.getuid() and not status.st_mode & 0o022
                if not is_ours or status.st_size == self._read:
                    return nothing
                if status.st_size < self._read:  # the older half was dropped
                    self._read = 0
                file.seek(self._read)
                body = file.read(MOST * 2 * _RECORD.itemsize)
        except OSError:
            return nothing
        body = body[: len(body) // _RECORD.itemsize * _RECORD.itemsize]
        self._read += len(body)
        records = np.frombuffer(body, _RECORD)
        return records[np.argsort(records["inode"], kind="stable")]

    def _drop_older_half(self) -> None:
        assert self.path is not None
        records = self.path.read_bytes()
        newer = len(records) // _RECORD.itemsize // 2 * _RECORD.itemsize
        write_atomically(self.path, records[len(records) - newer :])
        self.path.chmod(0o600)


def _record(status: os.stat_result, sha256: str) -> bytes:
    identity = np.array([status.st_dev, status.st_ino], "<u8").tobytes()
    state = np.array([status.st_size, status.st_mtime_ns], "<i8").tobytes()
    body = identity + state + bytes.fromhex(sha256)
    return body + zlib.crc32(body).to_bytes(8, "little")


def _is_among(records: np.ndarray, record: bytes) -> bool:
    """Whether a record is one of those, which are in the order of their inodes."""
    inode = np.frombuffer(record, _RECORD)["inode"][0]
    first = np.searchsorted(records["inode"], inode, side="left")
    last = np.searchsorted(records["inode"], inode, side="right")
    return any(found.tobytes() == record for found in records[first:last])
