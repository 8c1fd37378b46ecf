"""A bounded folder of downloaded shards that the processes of a machine share.

A file has its final name only when it is whole; a download under way is a ``.part`` file beside it,
which a broken transfer or a killed process leaves for the next to continue. One lock file per name
lets one process download it. Whoever reads a cached shard holds a shared lock on it; the kernel
drops that lock with the process, and eviction, oldest first, passes over what is locked.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
import time
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from core.command import Refused
from core.file_access.regular_files import open_regular_file
from core.files import sha256_of_file

log = logging.getLogger(__name__)

# Names of our files: a cache may lie in a folder with others.
_OURS = re.compile(r"[0-9a-f]{40}\.(tar|idx|[0-9]+\.part)")


class ShardCache:
    """Shards, their indexes and unfinished downloads in one folder.

    Args:
        max_bytes: what all of them may fill; shards in use may exceed it, with a warning.
    """

    def __init__(self, folder: Path, max_bytes: float):
        self.folder = folder
        self.max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """The shard whose name and content are told apart by ``digest``, 40 hexadecimal digits."""
        return self.folder / f"{digest}.tar"

    def part_path(self, path: Path, size: int) -> Path:
        """The unfinished download of the shard at ``path``; its name says how large it will be."""
        return path.with_suffix(f".{size}.part")

    def lock(self, path: Path) -> FileLock:
        """Held by the one process that downloads or removes the file at ``path``."""
        return FileLock(path.with_suffix(path.suffix + ".lock"))

    def open_if_present(self, path: Path) -> IO[bytes] | None:
        """A cached shard, open and locked against eviction; None when it is not there."""
        try:
            file = open_regular_file(path)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        status = _status(path)
        if status is None or status.st_ino != os.fstat(file.fileno()).st_ino:
            file.close()  # it was evicted between the two calls
            return None
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # used now, and not changed
        return file

    def remove_unless(self, path: Path, sha256: str) -> None:
        """Remove a file with another checksum; another process may have put it right meanwhile."""
        with self.lock(path):
            if path.exists() and not _has_checksum(path, sha256):
                path.unlink()

    def reserve(self, part: Path, size: int) -> None:
        """Make room for a download of ``size`` bytes and begin ``part``; the shards unused for
        longest go."""
        with FileLock(self.folder / "room.lock"):
            files = self._files(besides=part)
            sizes = {file: _final_size(file, status) for file, status in files.items()}
            used = sum(sizes.values())
            shards = [file for file in files if file.suffix != ".idx"]  # an index goes with its tar
            for file in sorted(shards, key=lambda file: files[file].st_atime_ns):
                if used + size <= self.max_bytes:
                    break
                if self._evict(file):
                    used -= sizes[file] + sizes.get(file.with_suffix(".idx"), 0)
            if used + size > self.max_bytes:
                log.warning(
                    "the shards in use leave no room for %s in %s; going over cache_gb=%g",
                    part,
                    self.folder,
                    self.max_bytes / 1e9,
                )
            part.touch()

    def _files(self, besides: Path) -> dict[Path, os.stat_result]:
        """Our files but one, with their status."""
        files = {}
        for file in self.folder.iterdir():
            if file == besides or not _OURS.fullmatch(file.name):
                continue
            status = _status(file)
            if status and stat.S_ISREG(status.st_mode):
                files[file] = status
        return files

    def _evict(self, file: Path) -> bool:
        """Remove a shard, or an unfinished download; False when somebody uses it."""
        if file.suffix == ".part":
            return self._evict_part(file)
        with file.open("rb") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            file.unlink()
        file.with_suffix(".idx").unlink(missing_ok=True)
        return True

    def _evict_part(self, part: Path) -> bool:
        shard = part.with_suffix("").with_suffix(".tar")
        try:
            with self.lock(shard).acquire(blocking=False):
                part.unlink(missing_ok=True)
        except Timeout:
            return False
        return True


def _has_checksum(path: Path, sha256: str) -> bool:
    try:
        return sha256_of_file(path) == sha256
    except Refused:  # it is no plain file
        return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _final_size(file: Path, status: os.stat_result) -> int:
    """Bytes of a cached file; an unfinished download counts as the whole shard."""
    if file.suffix == ".part":
        return int(file.suffixes[-2][1:])
    return status.st_size
