"""Shards behind a URL (https, s3, gs), downloaded whole into a cache that the processes of a
machine share.

A shard is downloaded once per machine, in chunks of which many are under way at a time, and goes on
where an earlier attempt stopped. It gets its name, a hash of its URL and of the content that the
manifest promises, when its checksum is right. Faults that may pass are retried with growing pauses,
in one place, ``_retry``.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from typing import IO, Any, TypeVar
from urllib.parse import quote

import aiohttp
import fsspec
import numpy as np
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from core.environment.caches import choose_caches, user_cache
from core.environment.credentials import how_to_give, recall, redact
from core.file_access.regular_files import SMALL, read_regular_file
from core.files import sha256_of_bytes, write_atomically
from data_shards.fetching.chunks import fetch_missing, running
from data_shards.fetching.connections import MOST, Connections, for_latency
from data_shards.fetching.http_answers import PUBLISH_AGAIN, fetch_into, fetch_small, write_at
from data_shards.fetching.protocol_options import (
    credential_options,
    describe_fault,
    lacks_credentials,
    may_pass,
    say_fault,
    time_limits,
)
from data_shards.fetching.sample_ranges import file_of_rows
from data_shards.fetching.unfinished import Unfinished
from data_shards.reading.checked_files import CheckedFiles
from data_shards.reading.shard_cache import ShardCache
from data_shards.shards.index_table import Index
from data_shards.shards.manifest import MANIFEST, DataError, Shard
from data_shards.shards.shard_table import TableFile
from data_shards.shards.writer import index_name

log = logging.getLogger(__name__)
T = TypeVar("T")

CHUNK = 8 << 20  # bytes of one request; what a broken one loses at most
RETRY: dict[str, Any] = {
    "stop": stop_after_attempt(8),
    "wait": wait_random_exponential(multiplier=0.3, max=20),
}
# What may be read, and the package that each needs besides fsspec.
PROTOCOLS = {"http": "", "https": "", "s3": "s3fs", "gs": "gcsfs"}

_DENIED = (401, 403, 407)


class Remote:
    """The files of a data set behind a URL. Credentials in it, or known for it, go to the server
    and into no name, message or key of the cache.

    Args:
        cache: folder for shards; by default ``concord`` in the user's cache folder.
        cache_gb: how much of it shards may fill.
        connections: requests under way at a time, over all processes of the machine that use the
            cache; 0: by the time that the server takes to answer, 8 to 32.
        options: storage options of fsspec for this protocol, such as ``endpoint_url`` or ``anon``.
    """

    def __init__(
        self,
        url: str,
        cache: Path | None,
        cache_gb: float,
        options: dict[str, Any] | None = None,
        connections: int = 0,
    ):
        choose_caches()
        self._address = recall(url)
        self.name = self._address.public
        self.protocol = self.name.partition("://")[0]
        if self.protocol not in PROTOCOLS:
            raise DataError(
                f"cannot read {self.name!r}: data= is a folder or a URL of {', '.join(PROTOCOLS)}"
            )
        if cache_gb <= 0:
            raise DataError(f"cache_gb must be positive, got {cache_gb}")
        if connections < 0:
            raise DataError(f"connections must not be negative, got {connections}")
        self.cache = ShardCache(
            Path(cache) if cache is not None else user_cache() / "concord", cache_gb * 1e9
        )
        self.checked_files = CheckedFiles(self.cache.folder / "checked_files.bin")
        self._cancelled = Event()
        self._times_cancelled = 0  # a download that began before the last time is given up
        self._connections = connections
        self._latency = 0.0  # seconds that the manifest took
        # Whether the server sends ranges; None: it is not known yet.
        self._sends_ranges: bool | None = None if self.protocol in ("http", "https") else True
        self._is_http = self.protocol in ("http", "https")
        options = (
            time_limits(self.protocol, connections or MOST)
            | credential_options(self.protocol, self._address)
            | (options or {})
        )
        try:
            self.files = fsspec.filesystem(self.protocol, skip_instance_cache=True, **options)
        except ImportError as error:
            raise DataError(
                f"{self.name} needs one more package: pip install {PROTOCOLS[self.protocol]}"
            ) from error

    @property
    def openers(self) -> int:
        return self._shared.most

    @cached_property
    def _shared(self) -> Connections:
        """The connections of this machine; as many as the latency asks for, once it is known."""
        most = self._connections or for_latency(self._latency)
        return Connections(self.cache.folder, most)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """One for each connection: requests wait in it in the order of need."""
        return ThreadPoolExecutor(self._shared.most, "fetch")

    def cancel_waiting(self, cancelled: bool) -> None:
        if cancelled:
            self._times_cancelled += 1
            self._cancelled.set()
        else:
            self._cancelled.clear()

    def capacity(self) -> float:
        return self.cache.max_bytes

    def read_manifest(self) -> bytes:
        started = time.monotonic()
        body = self._fetch_small(MANIFEST)
        self._latency = time.monotonic() - started
        return body

    def open_table(self, table: TableFile) -> Path:
        as_shard = Shard(table.file, table.shards, table.bytes, table.sha256, "")
        self.open_tar(as_shard).close()  # whole, and compared with its checksum
        return self.cached_path(as_shard)

    def shards_of_wrong_size(self, shards: Sequence[Shard]) -> list[int]:
        # Asking for ten thousand sizes would take minutes; each is known when its shard is fetched.
        return []

    def fetch(self, shard: Shard) -> None:
        path = self.cached_path(shard)
        has_index = path.with_suffix(".idx").exists()
        index = None if has_index else self._threads.submit(self.read_index, shard)
        failed: Exception | None = None
        try:
            if not path.exists():
                self._bring(shard, path)
        except Exception as error:
            failed = error
        if index is not None:
            index.result()
        if failed is not None:
            raise failed

    def read_index(self, shard: Shard) -> bytes:
        path = self.cached_path(shard).with_suffix(".idx")
        with self.cache.lock(path):
            if path.exists():
                return read_regular_file(path)
            body = self._fetch_small(index_name(shard.name))
            # A wrong one is not kept; whoever reads it refuses it.
            if sha256_of_bytes(body) == shard.index_sha256:
                write_atomically(path, body)
            return body

    def open_tar(self, shard: Shard) -> IO[bytes]:
        path = self.cached_path(shard)
        while True:  # another process may evict it between download and opening
            file = self.cache.open_if_present(path)
            if file is not None:
                return file
            self._bring(shard, path)

    def open_rows(self, shard: Shard, index: Index, rows: np.ndarray) -> IO[bytes] | None:
        if self.cached_path(shard).exists() or self._sends_ranges is False:
            return None

        def fetch_all(ranges: Sequence[tuple[int, int]], file: int) -> None:
            def fetch(wanted: tuple[int, int]) -> None:
                position, stop = wanted
                while position < stop:
                    position = self._fetch_range(shard.name, position, stop, shard.bytes, file)

            with running(self._threads, fetch, ranges) as started:
                for wanted in ranges:
                    started[wanted].result()

        where = self._shown(shard.name)
        return file_of_rows(self.cache.folder, index, rows, fetch_all, where)

    def discard_copy(self, shard: Shard) -> bool:
        path = self.cached_path(shard)
        self.cache.remove_unless(path, shard.sha256)
        self.cache.remove_unless(path.with_suffix(".idx"), shard.index_sha256)
        return True

    def cached_path(self, shard: Shard) -> Path:
        """Where the shard is, or will be, in the cache; its index lies beside it."""
        identity = f"{self.name}/{shard.name}\n{shard.sha256}"
        digest = sha256_of_bytes(identity.encode())
        return self.cache.path(digest[:40])

    def _bring(self, shard: Shard, path: Path) -> None:
        """Have the shard at ``path``, which this process or another downloads."""
        with self.cache.lock(path):
            if not path.exists():
                self._download(shard, path)

    def _download(self, shard: Shard, path: Path) -> None:
        """Fetch a shard to ``path``, going on where an earlier attempt stopped. The caller has its
        lock."""
        url = self._shown(shard.name)
        if not self._is_http:  # there the answer itself is counted, piece by piece
            _refuse_other_size(url, self._retry(lambda: self.files.size(url), url), shard.bytes)
        part = self.cache.part_path(path, shard.bytes)
        self.cache.reserve(part, shard.bytes)
        with part.open("r+b") as file:
            download = Unfinished(file, shard.bytes, CHUNK)
            fetch = partial(self._fetch_chunk, shard.name, download, self._times_cancelled)
            sha256 = fetch_missing(download, fetch, self._threads, lambda: self._sends_ranges)
            if sha256 == shard.sha256:
                download.finish()
                # In the past, so that whatever writes to it from now on changes its time.
                status = os.fstat(file.fileno())
                os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
                self.checked_files.add(os.fstat(file.fileno()), sha256)
        if sha256 != shard.sha256:
            part.unlink()
            raise DataError(
                f"{url} is not the shard that the manifest promises: its checksum is wrong; "
                f"{PUBLISH_AGAIN}"
            )
        os.replace(part, path)

    def _fetch_chunk(self, name: str, download: Unfinished, begun: int, number: int) -> None:
        """Fetch one chunk to its place; DataError when the file has another size."""
        first, stop = download.range(number)
        if number not in download.missing():  # an answer with all of the file brought it
            return
        position = first
        while position < stop:
            if begun != self._times_cancelled:
                raise ConnectionError(f"gave up fetching {self._shown(name)}: nobody waits for it")
            position = self._fetch_range(name, position, stop, download.size, download.descriptor)
        download.mark(0 if position > stop else first, position)

    def _fetch_range(self, name: str, start: int, stop: int, size: int, descriptor: int) -> int:
        """Write bytes [start, stop) of a remote file, or all of it, to their place; where they
        end."""
        url, asked = self._shown(name), self._asked(name)

        def fetch() -> int:
            if self._is_http:
                wanted = (start, stop)
                end, self._sends_ranges = fetch_into(
                    self.files, asked, url, wanted, size, descriptor
                )
                return end
            chunk: bytes = self.files.cat_file(asked, start=start, end=stop)
            if not 0 < len(chunk) <= stop - start:
                raise ConnectionError(
                    f"asked for bytes {start} to {stop} of {url}, got {len(chunk)} bytes"
                )
            write_at(descriptor, chunk, start)
            return start + len(chunk)

        try:
            return self._retry(partial(self._connected, fetch), url)
        except OSError:
            _refuse_other_size(url, self._size(name), size)
            raise

    def _size(self, name: str) -> int | None:
        """What the server says of the file's size, if it says anything."""
        try:
            return self.files.size(self._asked(name))
        except Exception:  # each protocol has its own ways to say no
            return None

    def _shown(self, name: str) -> str:
        """The URL of a file, for messages."""
        return f"{self.name}/{name}"

    def _asked(self, name: str) -> str:
        """The URL of a file, for the server: a signature belongs behind the file's name."""
        if not self._address.query:
            return self._shown(name)
        return f"{self.name}/{quote(name)}?{self._address.query}"

    def _fetch_small(self, name: str) -> bytes:
        url, asked = self._shown(name), self._asked(name)

        def fetch() -> bytes:
            if self._is_http:
                body, self._sends_ranges = fetch_small(self.files, asked, url, SMALL)
                return body
            size = self.files.size(asked) or 0
            body = b"" if size > SMALL else self.files.cat_file(asked, start=0, end=SMALL + 1)
            if max(size, len(body)) > SMALL:
                raise DataError(f"{url} has more than {SMALL} bytes, so it is no {name}")
            return body

        # The manifest is the first, and its latency says how many connections there will be.
        return self._retry(fetch if name == MANIFEST else partial(self._connected, fetch), url)

    def _connected(self, fetch: Callable[[], T]) -> T:
        """``fetch()`` with one of this machine's connections, which is free again between two
        attempts."""
        with self._shared.one():
            return fetch()

    def _retry(self, fetch: Callable[[], T], url: str) -> T:
        """``fetch()``, repeated with growing pauses while the fault may pass and someone waits."""
        retrying = Retrying(
            retry=retry_if_exception(may_pass),
            before_sleep=partial(say_fault, url),
            stop=stop_any(RETRY["stop"], stop_when_event_set(self._cancelled)),
            sleep=sleep_using_event(self._cancelled),
            wait=RETRY["wait"],
        )
        # None of these is raised "from" its cause, whose text may hold the URL with its
        # credentials.
        try:
            return retrying(fetch)
        except RetryError as error:
            last = error.last_attempt.exception()
            raise ConnectionError(
                f"could not fetch {url}: {describe_fault(last)}; what came is kept: run the same command again"
            ) from None
        except FileNotFoundError:
            raise DataError(f"{url} does not exist; {PUBLISH_AGAIN}") from None
        except aiohttp.ClientResponseError as error:
            raise ConnectionError(
                f"could not fetch {url}: the server answers {error.status} {error.message}"
                f"{self._hint(denied=error.status in _DENIED)}"
            ) from None
        except Exception as error:
            if not (isinstance(error, PermissionError) or lacks_credentials(error)):
                raise
            raise ConnectionError(
                f"could not fetch {url}: the server refuses: {redact(str(error))}"
                f"{self._hint(denied=True)}"
            ) from None

    def _hint(self, *, denied: bool) -> str:
        return f"; {how_to_give(self.protocol)}" if denied else ""


def _refuse_other_size(url: str, found: int | None, size: int) -> None:
    if found not in (None, size):
        raise DataError(
            f"{url} is damaged: it has {found} bytes, not {size}; {PUBLISH_AGAIN}"
        ) from None
