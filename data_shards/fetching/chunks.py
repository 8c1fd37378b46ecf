"""The chunks of one file, many at a time, hashed in their order while the others come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from data_shards.fetching.unfinished import Unfinished


def fetch_missing(
    download: Unfinished,
    fetch: Callable[[int], None],
    threads: Executor,
    sends_ranges: Callable[[], bool | None],
) -> str:
    """Fetch the chunks that are missing; the SHA-256 of the whole file, as 64 hexadecimal digits.

    Args:
        fetch: brings the chunk of a number, or of all, unless it is there.
        sends_ranges: whether the server sends parts of a file; None where it has not answered yet.
    """
    missing = download.missing()
    if missing and sends_ranges() is None:
        fetch(missing[0])  # a server that sends the whole is asked once
        missing = download.missing()
    at_a_time = missing if sends_ranges() else []
    digest = hashlib.sha256()
    with running(threads, fetch, at_a_time) as chunks:
        for number in range(download.chunks):
            if number in chunks:
                chunks[number].result()
            elif number in missing:
                fetch(number)
            download.add_to(digest, number)
    return digest.hexdigest()


@contextmanager
def running(
    threads: Executor, call: Callable[..., Any], arguments: Sequence[Any]
) -> Iterator[dict[Any, Future[Any]]]:
    """``call`` with each of the arguments, by threads; after the block none of them runs any
    more."""
    futures = {argument: threads.submit(call, argument) for argument in arguments}
    try:
        yield futures
    finally:
        for future in futures.values():
            future.cancel()
        for future in futures.values():
            if not future.cancelled():
                future.exception()  # waits
