"""How many requests the processes of a machine have under way at a time, all together.

Each connection is a lock file of the cache; the kernel lets go of the locks of a process that ends.
Nothing else is held while a process waits here, and none waits for what another fetches.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

FEWEST, MOST = 8, 32
PER_CONNECTION = 0.003  # seconds of latency for which one more connection is worth it
PAUSE = 0.005  # seconds between two looks for a free one


def for_latency(seconds: float) -> int:
    """How many connections keep a line busy whose requests take so long to answer."""
    return max(FEWEST, min(int(seconds / PER_CONNECTION), MOST))


class Connections:
    """Up to ``most`` requests at a time, shared with all processes that use the same folder."""

    def __init__(self, folder: Path, most: int):
        self.folder = folder
        self.most = most
        self._files: dict[int, int] = {}  # number -> descriptor
        self._free = list(range(most))
        self._lock, self._turn = Lock(), Lock()
        weakref.finalize(self, _close_all, self._files)

    @contextmanager
    def one(self) -> Iterator[None]:
        """A connection, once one is free on this machine."""
        with self._turn:  # one thread of a process looks for a free one
            number = self._take()
            while number is None:
                time.sleep(PAUSE)
                number = self._take()
        try:
            yield
        finally:
            with self._lock:
                fcntl.flock(self._files[number], fcntl.LOCK_UN)
                self._free.append(number)

    def _take(self) -> int | None:
        """The number of a connection that nobody has; None when all are taken."""
        with self._lock:
            for number in self._free:
                if self._lock_file(number):
                    self._free.remove(number)
                    return number
        return None

    def _lock_file(self, number: int) -> bool:
        if number not in self._files:
            path = self.folder / f"connection-{number:02d}.lock"
            self._files[number] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._files[number], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _close_all(files: dict[int, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)
