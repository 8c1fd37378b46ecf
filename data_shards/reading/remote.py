"""Shards behind a URL (https, s3, gs), downloaded whole into a cache that the processes of a
machine share.

A shard is downloaded once per machine, in chunks, and goes on where an earlier attempt stopped. It
gets its name, a hash of its URL and of the content that the manifest promises, when its checksum is
right. Faults that may pass are retried with growing pauses, in one place, ``_retry``.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import IO, Any, TypeVar
from urllib.parse import quote

import aiohttp
import fsspec
from fsspec.asyn import sync
from tenacity import (
    RetryCallState,
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
from core.environment.credentials import Address, how_to_give, recall, redact
from core.file_access.regular_files import SMALL, read_regular_file
from core.files import sha256_of_bytes, sha256_of_file, write_atomically
from data_shards.reading.shard_cache import ShardCache
from data_shards.shards.manifest import MANIFEST, DataError, Shard
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

_AGAIN = "publish the folder again, the manifest last"
WHOLE = 200  # the status of an answer that ignores the range asked for
_RETRIED_STATUS = (408, 425, 429)  # answers of the 400s that another attempt may change
_DENIED = (401, 403, 407)
_FINAL_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_NETWORK_ERRORS = (OSError, aiohttp.ClientError, asyncio.TimeoutError, TimeoutError)


class Remote:
    """The files of a data set behind a URL. Credentials in it, or known for it, go to the server
    and into no name, message or key of the cache.

    Args:
        cache: folder for shards; by default ``concord`` in the user's cache folder.
        cache_gb: how much of it shards may fill.
        options: storage options of fsspec for this protocol, such as ``endpoint_url`` or ``anon``.
    """

    def __init__(
        self, url: str, cache: Path | None, cache_gb: float, options: dict[str, Any] | None = None
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
        self.cache = ShardCache(
            Path(cache) if cache is not None else user_cache() / "concord", cache_gb * 1e9
        )
        self._cancelled = Event()
        self._is_http = self.protocol in ("http", "https")
        options = (
            _time_limits(self.protocol)
            | _credential_options(self.protocol, self._address)
            | (options or {})
        )
        try:
            self.files = fsspec.filesystem(self.protocol, skip_instance_cache=True, **options)
        except ImportError as error:
            raise DataError(
                f"{self.name} needs one more package: pip install {PROTOCOLS[self.protocol]}"
            ) from error

    def cancel_waiting(self, cancelled: bool) -> None:
        if cancelled:
            self._cancelled.set()
        else:
            self._cancelled.clear()

    def capacity(self) -> float:
        return self.cache.max_bytes

    def read_manifest(self) -> bytes:
        return self._fetch_small(MANIFEST)

    def shards_of_wrong_size(self, shards: Sequence[Shard]) -> list[int]:
        # Asking for ten thousand sizes would take minutes; each is known when its shard is fetched.
        return []

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
            with self.cache.lock(path):
                if not path.exists():
                    self._download(shard, path)

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

    def _download(self, shard: Shard, path: Path) -> None:
        """Fetch a shard to ``path``, going on where an earlier attempt stopped. The caller has its
        lock."""
        url = self._shown(shard.name)
        if not self._is_http:  # there the answer itself is counted, piece by piece
            _refuse_other_size(url, self._retry(lambda: self.files.size(url), url), shard.bytes)
        part = self.cache.part_path(path, shard.bytes)
        self.cache.reserve(part, shard.bytes)
        with part.open("r+b") as file:
            position = file.seek(0, os.SEEK_END)
            while position < shard.bytes:
                stop = min(position + CHUNK, shard.bytes)
                position = self._fetch_chunk(shard.name, position, stop, shard.bytes, file)
            file.flush()
            os.fsync(file.fileno())
        if sha256_of_file(part) != shard.sha256:
            part.unlink()
            raise DataError(
                f"{url} is not the shard that the manifest promises: its checksum is wrong; {_AGAIN}"
            )
        os.replace(part, path)

    def _fetch_chunk(self, name: str, start: int, stop: int, size: int, file: IO[bytes]) -> int:
        """Write bytes [start, stop) of a remote file of ``size`` bytes, or all of it, to their
        place in ``file``; where they end. DataError when it has another size."""
        url, asked = self._shown(name), self._asked(name)

        def fetch() -> int:
            if self._is_http:
                return _fetch_into(self.files, asked, url, (start, stop), size, file)
            chunk: bytes = self.files.cat_file(asked, start=start, end=stop)
            if not 0 < len(chunk) <= stop - start:
                raise ConnectionError(
                    f"asked for bytes {start} to {stop} of {url}, got {len(chunk)} bytes"
                )
            file.seek(start)
            return start + file.write(chunk)

        try:
            return self._retry(fetch, url)
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
                return _fetch_small(self.files, asked, url, SMALL)
            size = self.files.size(asked) or 0
            body = b"" if size > SMALL else self.files.cat_file(asked, start=0, end=SMALL + 1)
            if max(size, len(body)) > SMALL:
                raise DataError(f"{url} has more than {SMALL} bytes, so it is no {name}")
            return body

        return self._retry(fetch, url)

    def _retry(self, fetch: Callable[[], T], url: str) -> T:
        """``fetch()``, repeated with growing pauses while the fault may pass and someone waits."""
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            before_sleep=partial(_say_fault, url),
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
                f"could not fetch {url}: {_text(last)}; what came is kept: run the same command again"
            ) from None
        except FileNotFoundError:
            raise DataError(f"{url} does not exist; {_AGAIN}") from None
        except aiohttp.ClientResponseError as error:
            raise ConnectionError(
                f"could not fetch {url}: the server answers {error.status} {error.message}"
                f"{self._hint(denied=error.status in _DENIED)}"
            ) from None
        except Exception as error:
            if not (isinstance(error, PermissionError) or _lacks_credentials(error)):
                raise
            raise ConnectionError(
                f"could not fetch {url}: the server refuses: {redact(str(error))}"
                f"{self._hint(denied=True)}"
            ) from None

    def _hint(self, *, denied: bool) -> str:
        return f"; {how_to_give(self.protocol)}" if denied else ""


def _refuse_other_size(url: str, found: int | None, size: int) -> None:
    if found not in (None, size):
        raise DataError(f"{url} is damaged: it has {found} bytes, not {size}; {_AGAIN}") from None


def _say_fault(url: str, state: RetryCallState) -> None:
    """Before a pause: what went wrong."""
    fault = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    log.warning("%s: %s; trying again in %.1f s", url, _text(fault), pause)


def _text(fault: BaseException | None) -> str:
    return f"{type(fault).__name__}: {redact(str(fault))}"


def _credential_options(protocol: str, address: Address) -> dict[str, Any]:
    """Options of fsspec that carry a URL's credentials."""
    is_http = protocol in ("http", "https")
    if address.query and not is_http:
        raise DataError(f"{address.public}: no ?... can follow an address of {protocol}://")
    # encoded: a signature holds for these very characters
    options: dict[str, Any] = {"encoded": True} if address.query else {}
    if not (address.user or address.password):
        return options
    if protocol == "gs":
        raise DataError(f"{address.public}: {how_to_give(protocol)}")
    if protocol == "s3":
        return {"key": address.user, "secret": address.password}
    # With each request and not with the session: a redirection to another host must not take it
    # along.
    pair = base64.b64encode(f"{address.user}:{address.password}".encode()).decode()
    return options | {"headers": {"Authorization": f"Basic {pair}"}}


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may do better."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in _RETRIED_STATUS
    if isinstance(error, _FINAL_ERRORS):
        return False
    # The errors of the S3 and GCS libraries share no base class with the network's.
    if _lacks_credentials(error):
        return False
    module = type(error).__module__
    return isinstance(error, _NETWORK_ERRORS) or module.startswith(("botocore", "gcsfs"))


def _lacks_credentials(error: BaseException) -> bool:
    """Whether a library of S3 or GCS found no credentials, or could not use them."""
    module, name = type(error).__module__, type(error).__name__
    return module.startswith("google.auth") or (
        module.startswith("botocore") and "Credentials" in name
    )


def _time_limits(protocol: str) -> dict[str, Any]:
    """Options that keep a silent server from stopping a run for ever."""
    if protocol in ("http", "https"):
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol == "s3":
        limits = {"connect_timeout": 30, "read_timeout": 60}
        # Retried by ``Remote`` instead, with one count and one pause, and until cancelled.
        no_retries = {"retries": {"max_attempts": 0}}
        return {"config_kwargs": limits | no_retries}
    return {}


def _fetch_small(files: Any, asked: str, url: str, most: int) -> bytes:
    """The file behind ``url``; DataError, before more is read, when it has more than ``most``
    bytes.

    Args:
        files: the HTTP file system of fsspec.
        asked: ``url`` with what only the server may see of it.
    """
    body = io.BytesIO()  # hands its bytes over without a copy

    def receive(piece: bytes, _status: int) -> None:
        if body.tell() + len(piece) > most:
            raise DataError(f"{url} has more than {most} bytes, so it is no file of its kind")
        body.write(piece)

    sync(files.loop, _receive, files, asked, (0, most + 1), receive)
    return body.getvalue()


def _fetch_into(
    files: Any, asked: str, url: str, wanted: tuple[int, int], size: int, file: IO[bytes]
) -> int:
    """Write the bytes ``wanted`` of the file behind ``url`` to their place in ``file``, or all of
    it where the server sends all; where they end.

    Args:
        asked: ``url`` with what only the server may see of it.
        wanted: the first byte, and the one behind the last.
        size: bytes of the whole; DataError as soon as it has more.
    """
    start, stop = wanted
    end = -1  # of what has come

    def receive(piece: bytes, status: int) -> None:
        nonlocal end
        if end < 0:
            end = 0 if status == WHOLE else start
            file.seek(end)
        end += len(piece)
        if end > size:
            raise DataError(f"{url} is damaged: it has more than {size} bytes; {_AGAIN}")
        if status != WHOLE and end > stop:
            raise ConnectionError(f"asked for bytes {start} to {stop} of {url}, got more")
        file.write(piece)

    sync(files.loop, _receive, files, asked, wanted, receive)
    if end <= start:
        raise ConnectionError(f"asked for bytes {start} to {stop} of {url}, got none of them")
    return end


async def _receive(files: Any, url: str, wanted: tuple[int, int], receive: Any) -> None:
    """Hand each piece of the answer to ``receive``, with the answer's status."""
    session = await files.set_session()
    options = dict(files.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    headers["Range"] = f"bytes={wanted[0]}-{wanted[1] - 1}"
    async with session.get(files.encode_url(url), headers=headers, **options) as answer:
        files._raise_not_found_for_status(answer, url)
        async for piece in answer.content.iter_any():
            receive(piece, answer.status)
