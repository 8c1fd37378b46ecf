"""Answers of an HTTP server, written where they belong as they come, and never more than was asked
for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fsspec.asyn import sync

from data_shards.shards.manifest import DataError

WHOLE = 200  # the status of an answer that ignores the range asked for
PUBLISH_AGAIN = "publish the folder again, the manifest last"
BUFFER = 1 << 20  # bytes of an answer that may wait to be written

Receive = Callable[[bytes, int], None]  # a piece of an answer, and the answer's status


def fetch_small(files: Any, asked: str, url: str, most: int) -> tuple[bytes, bool]:
    """The file behind ``url``, and whether its server sends ranges; DataError, before more is read,
    when it has more than ``most`` bytes.

    Args:
        files: the HTTP file system of fsspec.
        asked: ``url`` with what only the server may see of it.
    """
    body = bytearray()
    sends_ranges = False

    def receive(piece: bytes, status: int) -> None:
        nonlocal sends_ranges
        sends_ranges = status != WHOLE
        if len(body) + len(piece) > most:
            raise DataError(f"{url} has more than {most} bytes, so it is no file of its kind")
        body.extend(piece)

    sync(files.loop, _receive, files, asked, (0, most + 1), receive)
    return bytes(body), sends_ranges


def fetch_into(
    files: Any, asked: str, url: str, wanted: tuple[int, int], size: int, descriptor: int
) -> tuple[int, bool]:
    """Write the bytes ``wanted`` of the file behind ``url`` to their place in an open file, or all
    of it where the server sends all; where they end, and whether the server sends ranges.

    Args:
        asked: ``url`` with what only the server may see of it.
        wanted: the first byte, and the one behind the last.
        size: bytes of the whole; DataError as soon as it has more.
    """
    start, stop = wanted
    end = -1  # of what has come
    sends_ranges = True

    def receive(piece: bytes, status: int) -> None:
        nonlocal end, sends_ranges
        if end < 0:
            sends_ranges = status != WHOLE
            end = start if sends_ranges else 0
        begin, end = end, end + len(piece)
        if end > size:
            raise DataError(f"{url} is damaged: it has more than {size} bytes; {PUBLISH_AGAIN}")
        if sends_ranges and end > stop:
            raise ConnectionError(f"asked for bytes {start} to {stop} of {url}, got more")
        write_at(descriptor, piece, begin)

    sync(files.loop, _receive, files, asked, wanted, receive)
    if end <= start:
        raise ConnectionError(f"asked for bytes {start} to {stop} of {url}, got none of them")
    return end, sends_ranges


def write_at(descriptor: int, piece: bytes, position: int) -> None:
    """Write all of ``piece`` to this position of an open file."""
    rest = memoryview(piece)
    while rest:
        written = os.pwrite(descriptor, rest, position)
        rest = rest[written:]
        position += written


async def _receive(files: Any, url: str, wanted: tuple[int, int], receive: Receive) -> None:
    """Hand each piece of the answer to ``receive``, with the answer's status."""
    session = await files.set_session()
    options = dict(files.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    headers["Range"] = f"bytes={wanted[0]}-{wanted[1] - 1}"
    options.setdefault("read_bufsize", BUFFER)
    async with session.get(files.encode_url(url), headers=headers, **options) as answer:
        files._raise_not_found_for_status(answer, url)
        async for piece in answer.content.iter_any():
            receive(piece, answer.status)
