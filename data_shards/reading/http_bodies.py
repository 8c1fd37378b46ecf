"""Answers of HTTP servers, read piece by piece and never further than was asked for: a server may
ignore a range, and a body need not end."""

from __future__ import annotations

from typing import IO, Any

from fsspec.asyn import sync

from data_shards.shards.manifest import DataError

WHOLE = 200  # the status of an answer that ignores the range asked for


def fetch_small(files: Any, asked: str, url: str, most: int) -> bytes:
    """The file behind ``url``; DataError, before more is read, when it has more than ``most`` bytes.

    Args:
        files: the HTTP file system of fsspec.
        asked: ``url`` with what only the server may see of it.
    """
    body = bytearray()

    def receive(piece: bytes, _status: int) -> None:
        if len(body) + len(piece) > most:
            raise DataError(f"{url} has more than {most} bytes, so it is no file of its kind")
        body.extend(piece)

    sync(files.loop, _receive, files, asked, (0, most + 1), receive)
    return bytes(body)


def fetch_into(
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
            raise DataError(
                f"{url} is damaged: it has more than {size} bytes; publish the folder again, "
                "the manifest last"
            )
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
