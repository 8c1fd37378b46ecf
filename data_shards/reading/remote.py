"""Shards behind a URL (https, s3, gs), fetched whole into a bounded cache that the ranks of a machine share.

A shard is downloaded once per machine, under a lock, into a ``.part`` file that a broken transfer or a killed process
leaves for the next to continue. It gets its name, a hash of its URL and of the content that the manifest promises,
when its checksum is right. Whoever reads a cached shard holds a shared lock on it; the kernel drops that lock with
the process, and eviction, oldest first, passes over what is locked.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import fsspec
from filelock import FileLock, Timeout
from tenacity import (
    RetryError,
    Retrying,
    before_sleep_log,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
)
from tenacity import wait_random_exponential as wait_random

from core.files import atomic_file, sha256_of_open_file
from data_shards.shards.manifest import MANIFEST, DataError, Shard
from data_shards.shards.writer import index_name

log = logging.getLogger(__name__)
T = TypeVar("T")
_OURS = re.compile(
    r"[0-9a-f]{40}\.(tar|idx|[0-9]+\.part)"
)  # a cache may lie in a folder with other files

CHUNK = 8 << 20  # bytes of one request; what a broken one loses at most
SMALL = 256 << 20  # no manifest or index is larger
RETRY: dict[str, Any] = {"stop": stop_after_attempt(8), "wait": wait_random(multiplier=0.3, max=20)}
PROTOCOLS = {
    "http": "",
    "https": "",
    "s3": "s3fs",
    "gs": "gcsfs",
}  # and the package each needs besides fsspec
_AGAIN = (408, 425, 429)  # answers of the 400s that another attempt may change


class Remote:
    """The files of a data set behind a URL.

    Args:
        cache: folder for shards; by default ``concord`` in the user's cache folder.
        cache_gb: how much of it shards may fill.
        options: storage options of fsspec for this protocol, such as ``endpoint_url`` or ``anon``.
    """

    def __init__(
        self, url: str, cache: Path | None, cache_gb: float, options: dict[str, Any] | None = None
    ):
        protocol = urlsplit(url).scheme
        if protocol not in PROTOCOLS:
            raise ValueError(
                f"cannot read {url!r}: data= is a folder or a URL of {', '.join(PROTOCOLS)}"
            )
        if cache_gb <= 0:
            raise ValueError(f"cache_gb must be positive, got {cache_gb}")
        self.name = url.rstrip("/")
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.cache = Path(cache) if cache is not None else home / "concord"
        self.cache.mkdir(parents=True, exist_ok=True)
        self.bound = cache_gb * 1e9
        self.giving_up = Event()
        try:
            self.files = fsspec.filesystem(
                protocol, skip_instance_cache=True, **(_patience(protocol) | (options or {}))
            )
        except ImportError as error:
            raise ValueError(
                f"{url} needs one more package: pip install {PROTOCOLS[protocol]}"
            ) from error

    def give_up(self, now: bool) -> None:
        self.giving_up.set() if now else self.giving_up.clear()

    def room(self) -> float:
        return self.bound

    def manifest(self) -> bytes:
        return self._small(MANIFEST)

    def wrong_sizes(self, shards: Sequence[Shard]) -> list[int]:
        return []  # asking for ten thousand sizes would take minutes; each is known when its shard is fetched

    def index(self, shard: Shard) -> bytes:
        path = self._local(shard).with_suffix(".idx")
        with self._exclusive(path):
            if path.exists():
                return path.read_bytes()
            body = self._small(index_name(shard.name))
            if (
                hashlib.sha256(body).hexdigest() == shard.index_sha256
            ):  # a wrong one is not kept; the reader refuses it
                with atomic_file(path) as file:
                    file.write(body)
            return body

    def tar(self, shard: Shard) -> IO[bytes]:
        path = self._local(shard)
        while True:
            file = _held(path)
            if file is not None:
                return file
            with self._exclusive(path):
                if not path.exists():
                    self._download(shard, path)

    def forget(self, shard: Shard) -> bool:
        path = self._local(shard)
        beside = path.with_suffix(".idx")
        for file, sha256 in ((path, shard.sha256), (beside, shard.index_sha256)):
            with self._exclusive(file):
                if (
                    file.exists() and _checksum(file) != sha256
                ):  # another rank may have put it right meanwhile
                    file.unlink()
        return True

    def _local(self, shard: Shard) -> Path:
        named = hashlib.sha256(f"{self.name}/{shard.name}\n{shard.sha256}".encode()).hexdigest()
        return self.cache / f"{named[:40]}.tar"

    def _exclusive(self, path: Path) -> FileLock:
        return FileLock(path.with_suffix(path.suffix + ".lock"))

    def _download(self, shard: Shard, path: Path) -> None:
        """Fetch a shard to ``path``, going on where an earlier attempt stopped. The caller holds its lock."""
        url = f"{self.name}/{shard.name}"
        part = path.with_suffix(f".{shard.bytes}.part")
        self._make_room(part, shard.bytes)
        with part.open("r+b") as file:
            have = file.seek(0, os.SEEK_END)
            while have < shard.bytes:
                chunk = self._chunk(url, have, min(have + CHUNK, shard.bytes), shard.bytes)
                if len(chunk) == shard.bytes:  # a server without ranges sends all of it
                    have = file.seek(0)
                have += file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if _checksum(part) != shard.sha256:
            part.unlink()
            raise DataError(
                f"{url} is not the shard that the manifest promises: its checksum is wrong; "
                f"publish the folder again, the manifest last"
            )
        os.replace(part, path)

    def _chunk(self, url: str, start: int, stop: int, size: int) -> bytes:
        def fetch() -> bytes:
            chunk: bytes = self.files.cat_file(url, start=start, end=stop)
            if not chunk or len(chunk) > stop - start and len(chunk) != size:
                raise ConnectionError(
                    f"asked for bytes {start} to {stop} of {url}, got {len(chunk)} bytes"
                )
            return chunk

        try:
            return self._again(fetch, url)
        except OSError:
            found = self._size(url)
            if found not in (None, size):
                raise DataError(
                    f"{url} is damaged: it has {found} bytes, not {size}; publish the folder again, the manifest last"
                ) from None
            raise

    def _size(self, url: str) -> int | None:
        """What the server says of the file's size, if it says anything."""
        try:
            return self.files.size(url)
        except Exception:  # each protocol has its own ways to say no
            return None

    def _small(self, name: str) -> bytes:
        url = f"{self.name}/{name}"
        body: bytes = self._again(lambda: self.files.cat_file(url, start=0, end=SMALL), url)
        if len(body) >= SMALL:
            raise DataError(f"{url} is larger than {SMALL} bytes, so it is no {name}")
        return body

    def _again(self, fetch: Callable[[], T], url: str) -> T:
        """``fetch()``, repeated with growing pauses while the fault may pass."""
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            before_sleep=before_sleep_log(log, logging.WARNING),
            stop=stop_any(RETRY["stop"], stop_when_event_set(self.giving_up)),
            sleep=sleep_using_event(self.giving_up),
            wait=RETRY["wait"],
        )
        try:
            return retrying(fetch)
        except RetryError as error:
            last = error.last_attempt.exception()
            raise ConnectionError(
                f"could not fetch {url}: {type(last).__name__}: {last}; what came is kept: run the same command again"
            ) from last
        except FileNotFoundError as error:
            raise DataError(
                f"{url} does not exist; publish the folder again, the manifest last"
            ) from error
        except PermissionError as error:
            raise ConnectionError(f"could not fetch {url}: the server refuses: {error}") from error
        except aiohttp.ClientResponseError as error:
            raise ConnectionError(
                f"could not fetch {url}: the server answers {error.status} {error.message}"
            ) from error

    def _make_room(self, part: Path, size: int) -> None:
        """Reserve ``size`` bytes of the cache for ``part``; remove the shards that were not used for longest."""
        with FileLock(self.cache / "room.lock"):
            files = [
                file for file in self.cache.iterdir() if _OURS.fullmatch(file.name) and file != part
            ]
            known = {file: status for file in files if (status := _status(file))}
            taken = {file: _reserved(file, status.st_size) for file, status in known.items()}
            used = sum(taken.values())
            for file in sorted(
                (f for f in taken if f.suffix != ".idx"), key=lambda f: known[f].st_atime_ns
            ):
                if used + size <= self.bound:
                    break
                if self._removed(file):
                    used -= taken[file] + taken.get(file.with_suffix(".idx"), 0)
            if used + size > self.bound:
                log.warning(
                    "the shards in use leave no room for %s in %s; going over cache_gb=%g",
                    part,
                    self.cache,
                    self.bound / 1e9,
                )
            part.touch()

    def _removed(self, file: Path) -> bool:
        """Remove a shard, or what is left of a transfer; False when somebody uses it."""
        if file.suffix == ".part":
            try:
                with self._exclusive(file.with_suffix("").with_suffix(".tar")).acquire(
                    blocking=False
                ):
                    file.unlink(missing_ok=True)
                return True
            except Timeout:
                return False
        with file.open("rb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            file.unlink()
        file.with_suffix(".idx").unlink(missing_ok=True)
        return True


def _held(path: Path) -> IO[bytes] | None:
    """A cached shard, open and locked against eviction; None when it is not there."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    status = _status(path)
    if (
        status is None or status.st_ino != os.fstat(file.fileno()).st_ino
    ):  # evicted between the two calls
        file.close()
        return None
    os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # used now, and not changed
    return file


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _reserved(file: Path, size: int) -> int:
    """What a file of the cache will take: a transfer under way counts as the whole shard, which its name tells."""
    return int(file.suffixes[-2][1:]) if file.suffix == ".part" else size


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of_open_file(file)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in _AGAIN
    if isinstance(
        error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError
    ):
        return False
    if type(error).__module__.startswith("botocore") and "Credentials" in type(error).__name__:
        return False
    return isinstance(
        error, OSError | aiohttp.ClientError | asyncio.TimeoutError | TimeoutError
    ) or type(error).__module__.startswith(("botocore", "gcsfs"))


def _patience(protocol: str) -> dict[str, Any]:
    """Options that keep a silent server from stopping a run for ever."""
    if protocol in ("http", "https"):
        return {
            "client_kwargs": {
                "timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            }
        }
    if protocol == "s3":
        # repeating is done here, with one count and one pause, and can be given up
        return {
            "config_kwargs": {
                "connect_timeout": 30,
                "read_timeout": 60,
                "retries": {"max_attempts": 0},
            }
        }
    return {}
