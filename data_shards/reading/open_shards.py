"""Shards at hand: fetched, compared with the manifest, and kept open while in use.

Before a sample of a shard is used, its index and the whole tar are compared with the manifest's
checksums, and the index with the manifest's fields, so nothing later needs to doubt an offset.
"""

from __future__ import annotations

import logging
import mmap
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import IO

import numpy as np

from core.command import Refused
from core.files import sha256_of_bytes, sha256_of_open_file
from data_shards.fetching.sample_ranges import worth_it
from data_shards.reading.corruption import describe_wrong_checksum, describe_wrong_size
from data_shards.reading.storage import Store
from data_shards.shards.index_table import ABSENT, Index, columns, summary
from data_shards.shards.manifest import DataError, Field, Shard
from data_shards.shards.writer import index_name

RowsOf = Callable[[int], np.ndarray]  # shard number -> rows of it
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class OpenShard:
    """A shard that was found to be what the manifest says. Its file is open as long as this object
    lives."""

    index: Index
    file: IO[bytes]
    # (S, 2 F) int64: per sample, the offset of each of F fields, then the length of each
    locations: np.ndarray
    # (S,) bool, the rows that are there; None: all
    rows: np.ndarray | None = None

    @cached_property
    def content(self) -> mmap.mmap:
        """The whole tar, mapped when first asked for."""
        return mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Handle of the file, and the address of ``locations`` in memory."""
        return self.file.fileno(), self.locations.ctypes.data

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fileno(), size, offset)

    def has(self, rows: np.ndarray) -> bool:
        """Whether all of these rows are there."""
        return self.rows is None or bool(self.rows[rows].all())


class OpenShards:
    """The most recently used shards of one split, opened when needed.

    Args:
        known: all fields of the data set.
        wanted: those whose locations are looked up.
        keep: how many shards stay open.
        threads: shards opened (fetched, checked) at the same time; 0 opens in the caller's thread.
    """

    def __init__(
        self,
        store: Store,
        shards: Sequence[Shard],
        known: dict[str, Field],
        wanted: dict[str, Field],
        *,
        keep: int,
        threads: int,
    ):
        self.store = store
        self.shards = shards
        self.known = known
        self.wanted = wanted
        self.keep = max(keep, 1)
        # shard number -> inode, size and time of the file that was compared with its checksum
        self.checked: dict[int, tuple[int, int, int]] = {}
        self._needed: RowsOf | None = None
        self._futures: OrderedDict[int, Future[OpenShard]] = OrderedDict()  # the newest last
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(threads, "open-shard") if threads else None

    def __len__(self) -> int:
        """Shards that are open or being opened."""
        return len(self._futures)

    def get(self, number: int) -> OpenShard:
        """An open shard; DataError when it is corrupt."""
        return self._future(number).result()

    def whole(self, number: int) -> OpenShard:
        """An open shard with all of its rows."""
        shard = self.get(number)
        if shard.rows is None:
            return shard
        opened: Future[OpenShard] = Future()
        opened.set_result(self._opened(number, None))
        with self._lock:
            self._futures[number] = opened
        return opened.result()

    @contextmanager
    def in_use(self, wanted: Mapping[int, np.ndarray]) -> Iterator[dict[int, OpenShard]]:
        """Several open shards by number, none of which is closed before the block ends.

        Args:
            wanted: the rows of each that are read.
        """
        shards = {}
        for number, rows in wanted.items():
            shard = self.get(number)
            shards[number] = shard if shard.has(rows) else self.whole(number)
        yield shards

    def need(self, rows_of: RowsOf | None) -> None:
        """Which rows of each shard will be read from now on; None: any. What was opened for other
        rows is opened again."""
        if rows_of is None and self._needed is None:
            return
        self.cancel()
        self.store.cancel_waiting(False)
        with self._lock:
            self._needed = rows_of
            for number, future in list(self._futures.items()):
                if future.result().rows is not None:
                    del self._futures[number]

    def open_ahead(self, numbers: Iterable[int]) -> None:
        """Start opening these shards in the background."""
        if self._pool:
            for number in numbers:
                self._future(number)

    def cancel(self) -> None:
        """Stop opening shards that nobody waits for any more; asked for again, they are opened
        again."""
        self.store.cancel_waiting(True)
        with self._lock:
            for number, future in list(self._futures.items()):
                if future.cancel() or not future.done() or future.exception():
                    del self._futures[number]

    def close(self) -> None:
        """Let go of every shard."""
        self.cancel()
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._futures.clear()

    def _future(self, number: int) -> Future[OpenShard]:
        """The shard, open or being opened; the shards unused for longest make room for it."""
        with self._lock:
            future = self._futures.get(number)
            if future is not None:
                self._futures.move_to_end(number)
                return future
            while len(self._futures) >= self.keep:
                self._futures.popitem(last=False)
            if self._pool:
                future = self._pool.submit(self._open, number)
            else:
                future = Future()
            self._futures[number] = future
        if not self._pool:
            try:
                future.set_result(self._open(number))
            except BaseException as error:
                future.set_exception(error)
        return future

    def _open(self, number: int) -> OpenShard:
        """Open a shard and check it, once more from its origin where the fault may be in a local
        copy."""
        return self._opened(number, self._needed)

    def _opened(self, number: int, needed: RowsOf | None) -> OpenShard:
        try:
            return self._open_once(number, needed)
        except Refused as error:
            if not self.store.discard_copy(self.shards[number]):
                raise
            log.warning("%s; fetching it again", error)
            return self._open_once(number, needed)

    def _open_once(self, number: int, needed: RowsOf | None) -> OpenShard:
        rows = None if needed is None else needed(number)
        if rows is not None and worth_it(rows, self.shards[number].samples):
            opened = self._open_rows(number, rows)
            if opened is not None:
                return opened
        return self._open_whole(number)

    def _open_rows(self, number: int, rows: np.ndarray) -> OpenShard | None:
        """The shard with these rows only; None where all are as near."""
        shard = self.shards[number]
        index = read_index(self.store, shard, self.known)
        file = self.store.open_rows(shard, index, rows)
        if file is None:
            return None
        there = np.zeros(len(index), bool)
        there[rows] = True
        opened = OpenShard(index, file, _locations(index, self.wanted), there)
        weakref.finalize(opened, file.close)
        return opened

    def _open_whole(self, number: int) -> OpenShard:
        shard = self.shards[number]
        self.store.fetch(shard)
        index = read_index(self.store, shard, self.known)
        file = self.store.open_tar(shard)
        try:
            self._check_tar(number, index, file)
        except BaseException:
            file.close()
            raise
        opened = OpenShard(index, file, _locations(index, self.wanted))
        # Open as long as it is used: a cache removes no file that is open.
        weakref.finalize(opened, file.close)
        return opened

    def _check_tar(self, number: int, index: Index, file: IO[bytes]) -> None:
        """DataError unless the tar has the manifest's size and checksum.

        The checksum of a file is computed once per machine, and again when the file has changed.
        """
        shard = self.shards[number]
        where = f"{self.store.name}/{shard.name}"
        status = os.fstat(file.fileno())
        if status.st_size != shard.bytes:
            raise DataError(describe_wrong_size(where, index, status.st_size, shard.bytes))
        identity = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self.checked.get(number) == identity:
            return
        known = self.store.checked_files
        if not known.knows(status, shard.sha256):
            with known.one_at_a_time(status):
                # Another process may have done it meanwhile.
                if not known.knows(status, shard.sha256):
                    self._compare_checksum(where, shard, index, file)
        self.checked[number] = identity

    def _compare_checksum(self, where: str, shard: Shard, index: Index, file: IO[bytes]) -> None:
        """DataError unless the tar has the manifest's checksum; recorded for all processes of this
        machine."""
        before = os.fstat(file.fileno())
        if sha256_of_open_file(file) != shard.sha256:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                raise DataError(describe_wrong_checksum(where, index, content))
        after = os.fstat(file.fileno())
        if after.st_mtime_ns == before.st_mtime_ns:  # nobody wrote to it meanwhile
            self.store.checked_files.add(after, shard.sha256)


def read_index(store: Store, shard: Shard, fields: dict[str, Field]) -> Index:
    """The index of a shard, compared with what the manifest says of both."""
    where = f"{store.name}/{index_name(shard.name)}"
    body = store.read_index(shard)
    if sha256_of_bytes(body) != shard.index_sha256:
        raise DataError(
            f"{where} is damaged: its checksum is not the manifest's; "
            f"make it again with: python -m data_shards.index {store.name}"
        )
    index = Index.from_bytes(body, where)
    if (len(index), index.tar_bytes) != (shard.samples, shard.bytes):
        raise DataError(
            f"{where} is of {len(index)} samples in {index.tar_bytes} bytes, "
            f"but the manifest says {shard.samples} in {shard.bytes}; convert the data again"
        )
    for name, (dtype, extents) in summary(index).items():
        field = fields.get(name)
        if field is None:
            raise DataError(
                f"{where}: field {name!r} is not in the manifest; convert the data again"
            )
        if dtype != field.dtype or not _fits(extents, field.shape):
            raise DataError(
                f"{where}: field {name!r} is {dtype} with axes from, to {extents}; "
                f"the manifest says {field.dtype} {field.shape}; convert the data again"
            )
    return index


def _fits(extents: Sequence[tuple[int, ...]], shape: tuple[int | None, ...]) -> bool:
    """Whether arrays whose axes have these smallest and largest extents are of the shape."""
    if len(extents) != len(shape):
        return False
    for found, expected in zip(extents, shape, strict=True):
        if expected is not None and found != (expected, expected):
            return False
    return True


def _locations(index: Index, fields: dict[str, Field]) -> np.ndarray:
    """(S, 2 F) int64, the offset of each array, then how many frames it has: 1 if of fixed shape, 0
    if absent."""
    locations = np.zeros((len(index), 2 * len(fields)), np.int64)
    offset_columns = columns(index.arrays)
    for number, (name, field) in enumerate(fields.items()):
        if name not in offset_columns:
            continue
        column = offset_columns[name]
        offset = index.table[:, column]
        if None in field.shape:  # the columns of the shape follow that of the offset
            length = index.table[:, column + 1 + field.shape.index(None)]
        else:
            length = offset != ABSENT
        locations[:, number] = offset
        locations[:, len(fields) + number] = length
    return locations
