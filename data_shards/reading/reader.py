"""Shards at hand: open, check, view, and read samples into padded batches.

Before a sample of a shard is used, its index and the whole tar are compared with the manifest's checksums, and the
index with the manifest's fields, so nothing later needs to doubt an offset. Batches are read straight into place;
views are of a memory map, made when the first is asked for.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from threading import Lock
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from core.files import sha256_of_open_file
from data_shards.reading.buffer_pool import BufferPool
from data_shards.reading.copy_rows import gather, look_up
from data_shards.reading.corruption import advice, explain
from data_shards.reading.storage import Store
from data_shards.shards.index_table import (
    ABSENT,
    JSON,
    JSON_SIZE,
    TEXT,
    TEXT_SIZE,
    Index,
    bytes_of,
    columns,
    parse_json,
    summary,
)
from data_shards.shards.manifest import DataError, Field, Shard
from data_shards.shards.writer import index_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrays:
    """The samples of one part of a global batch, as tensors. Time axes are padded with zeros to the longest sample.

    A sample without a field has length 0 there; in a field of fixed shape it holds nan, or -1 for signed integers,
    and zero for other types.
    """

    index: Tensor  # (B,) int64, place of each sample in its split
    weight: Tensor  # (B,) float32, 1 for a sample, 0 for the one row of a part that would be empty
    loss_scale: float  # ranks * micro-batches / samples in the global batch
    arrays: dict[
        str, Tensor
    ]  # field -> (B, *shape), the None axis of the field as long as its longest sample
    lengths: dict[str, Tensor]  # field with a None axis -> (B,) int64

    def pin_memory(self) -> Arrays:
        """For DataLoader, which pins what has this method; the stream's own pinned parts are made so."""
        pinned = (
            {name: part.pin_memory() for name, part in some.items()}
            for some in (self.arrays, self.lengths)
        )
        return Arrays(self.index.pin_memory(), self.weight.pin_memory(), self.loss_scale, *pinned)


@dataclass(frozen=True)
class _Layout:
    """How an array of a field lies in memory: ``lead`` runs of frames of ``inner`` bytes."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    lead: int
    inner: int
    timed: bool  # has a time axis

    @staticmethod
    def of(field: Field) -> _Layout:
        dtype, timed = torch_dtype(field.dtype), None in field.shape
        axis = field.shape.index(None) if timed else 0
        lead = prod(extent or 0 for extent in field.shape[:axis])
        inner = prod(extent or 0 for extent in field.shape[axis + timed :]) * dtype.itemsize
        return _Layout(field.shape, dtype, lead, inner, timed)


@dataclass(frozen=True, eq=False)
class Opened:
    """An open shard that was found to be what the manifest says. While it is held the file stays open."""

    index: Index
    file: IO[bytes]
    places: (
        np.ndarray
    )  # (S, 2 F) int64: offsets, then lengths, of the reader's fields; length 0 where there is none

    @cached_property
    def map(self) -> mmap.mmap:
        return mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Handle of the file, and where ``places`` lies."""
        return self.file.fileno(), self.places.ctypes.data

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.file.fileno(), size, offset)


class Reader:
    """The shards of one split, opened when needed and kept while in use.

    Args:
        known: all fields of the data set.
        chosen: the names of those to read; all by default.
        keep: how many shards stay open.
        threads: shards opened (fetched, checked) at the same time; 0 opens in the caller's thread.
    """

    def __init__(
        self,
        store: Store,
        shards: Sequence[Shard],
        known: dict[str, Field],
        chosen: Sequence[str] | None = None,
        *,
        keep: int,
        threads: int = 2,
    ):
        self.store, self.shards, self.known, self.keep = store, shards, known, max(keep, 1)
        if unknown := [name for name in chosen or () if name not in known]:
            raise DataError(f"{store.name} has no field {unknown[0]!r}; it has {', '.join(known)}")
        self.fields = known if chosen is None else {name: known[name] for name in chosen}
        self.starts = np.cumsum([0, *(shard.samples for shard in shards)])[
            :-1
        ]  # place of each shard's first sample
        self._open: OrderedDict[int, Future[Opened]] = OrderedDict()
        self._checked: dict[
            int, tuple[int, int, int]
        ] = {}  # shard -> the file that was compared with its checksum
        self._file, self._table = np.zeros(
            (2, len(shards)), np.int64
        )  # handles, addresses of places; of open shards
        self._layout = {name: _Layout.of(field) for name, field in self.fields.items()}
        self._memory = BufferPool()
        self._lock, self._tables = Lock(), Lock()
        self._pool = ThreadPoolExecutor(threads, "open-shard") if threads else None

    def shard(self, number: int) -> Opened:
        """An open shard; DataError when it is damaged."""
        return self._future(number).result()

    def ahead(self, numbers: Iterable[int]) -> None:
        """Start opening these shards."""
        if self._pool:
            for number in numbers:
                self._future(number)

    def give_up(self) -> None:
        """Stop opening shards that nobody waits for any more; the next that is asked for is opened again."""
        self.store.give_up(True)
        with self._lock:
            for number, future in list(self._open.items()):
                if future.cancel() or not future.done() or future.exception():
                    del self._open[number]

    def close(self) -> None:
        """Let go of every shard. Arrays that were viewed stay valid as long as they are held."""
        self.give_up()
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._open.clear()

    def views(self, number: int, row: int) -> dict[str, np.ndarray]:
        """The arrays of one sample, read-only and without a copy. An absent field is not there."""
        return next(self.walk(number, (row,)))

    def walk(self, number: int, rows: Iterable[int]) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of samples of one shard, as ``views`` gives them."""
        opened = self.shard(number)
        first = columns(opened.index.arrays)
        plan = []
        for field in (name for name in self.fields if name in first):
            dtype, axes = opened.index.arrays[field]
            plan.append((field, np.dtype(dtype), first[field], first[field] + 1 + axes))
        held, array = opened.map, np.ndarray
        for row in rows:
            line = opened.index.table[row].tolist()
            yield {
                field: array(line[column + 1 : stop], dtype, held, line[column])
                for field, dtype, column, stop in plan
                if line[column] != ABSENT
            }

    def record(self, number: int, row: int) -> dict[str, Any]:
        """The JSON of one sample, with at least its ``id``; ``text`` where there is a transcript."""
        opened = self.shard(number)
        line = opened.index.table[row].tolist()
        where = f"{self.store.name}/{self.shards[number].name}, sample {opened.index.key(row)!r}"
        record: dict[str, Any] = {}
        if line[JSON] != ABSENT:
            record = parse_json(opened.read(line[JSON], line[JSON_SIZE]), where)
        record.setdefault("id", opened.index.key(row))
        if line[TEXT] != ABSENT:
            record["text"] = opened.read(line[TEXT], line[TEXT_SIZE]).decode("utf-8", "replace")
        return record

    def lengths(self, number: int) -> np.ndarray:
        """(S,) int64, bytes of each sample in the fields that are read."""
        return bytes_of(self.shard(number).index, self.fields)

    def collate(self, shard: np.ndarray, row: np.ndarray, pin: bool = False) -> Arrays:
        """One padded part of the samples given by shard and row, (B,) each."""
        held, file, offset, length = self._places(shard, row)
        arrays: dict[str, Tensor] = {}
        lengths: dict[str, Tensor] = {}
        layout = np.empty((len(self.fields), 4), np.int64)
        for number, (name, field) in enumerate(self._layout.items()):
            longest = max(int(length[number].max()), 1)
            shape = [longest if extent is None else extent for extent in field.shape]
            out = self._memory.tensor((len(row), *shape), field.dtype, pin)
            layout[number] = field.lead, field.inner, longest if field.timed else 1, out.data_ptr()
            arrays[name] = out
        failed = gather(file, offset, length, layout)
        if failed >= 0:
            self._changed(int(shard[failed]), int(row[failed]))
        del held
        for number, (name, field) in enumerate(self._layout.items()):
            if field.timed:
                lengths[name] = torch.from_numpy(length[number])
            elif not length[number].all():
                arrays[name][torch.from_numpy(length[number] == 0)] = _nothing(field.dtype)
        return Arrays(
            torch.from_numpy(self.starts[shard] + row), torch.ones(len(row)), 1.0, arrays, lengths
        )

    def _places(
        self, shard: np.ndarray, row: np.ndarray
    ) -> tuple[list[Opened], np.ndarray, np.ndarray, np.ndarray]:
        """The open shards, to be held while they are read, (B,) their files, (F, B) offsets, and (F, B) lengths."""
        held = {number: self.shard(number) for number in set(shard.tolist())}
        with self._tables:  # no one else may put another opening of these shards there meanwhile
            for number, opened in held.items():
                self._file[number], self._table[number] = opened.addresses
            file, table = self._file[shard], self._table[shard]
        found = np.empty((2 * len(self.fields), len(row)), np.int64)
        look_up(table, np.ascontiguousarray(row), found)
        return list(held.values()), file, found[: len(self.fields)], found[len(self.fields) :]

    def _changed(self, number: int, row: int) -> None:
        where = f"{self.store.name}/{self.shards[number].name}"
        key = self.shard(number).index.key(row)
        raise DataError(
            f"{where}: sample {key!r} could not be read whole; was the file changed in use? {advice(where)}"
        )

    def _future(self, number: int) -> Future[Opened]:
        with self._lock:
            future = self._open.get(number)
            new = future is None
            if future is None:
                while len(self._open) >= self.keep:
                    self._open.popitem(last=False)
                if self._pool:
                    future = self._pool.submit(self._load, number)
                else:
                    future = Future()
                self._open[number] = future
            self._open.move_to_end(number)
        if new and not self._pool:
            _run(future, lambda: self._load(number))
        return future

    def _load(self, number: int) -> Opened:
        """Open a shard and check it, once more from its origin where the fault may be in a local copy."""
        try:
            return self._load_once(number)
        except DataError as error:
            if not self.store.forget(self.shards[number]):
                raise
            log.warning("%s; fetching it again", error)
            return self._load_once(number)

    def _load_once(self, number: int) -> Opened:
        shard = self.shards[number]
        where = f"{self.store.name}/{shard.name}"
        index = read_index(self.store, shard, self.known)
        file = self.store.tar(shard)
        try:
            status = os.fstat(file.fileno())
            if status.st_size != shard.bytes:
                what = f"it has {status.st_size} bytes, not {shard.bytes}"
                raise DataError(explain(where, index, what, size=status.st_size))
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._checked.get(number) != identity:
                if sha256_of_open_file(file) != shard.sha256:
                    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
                        raise DataError(explain(where, index, "its checksum is wrong", held))
                self._checked[number] = identity
        except BaseException:
            file.close()
            raise
        opened = Opened(index, file, _places(index, self.fields))
        weakref.finalize(
            opened, file.close
        )  # open as long as it is used: a cache removes no file that is open
        return opened


def read_index(store: Store, shard: Shard, fields: dict[str, Field]) -> Index:
    """The index of a shard, compared with what the manifest says of both."""
    where = f"{store.name}/{index_name(shard.name)}"
    body = store.index(shard)
    if hashlib.sha256(body).hexdigest() != shard.index_sha256:
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
    for field, (dtype, extents) in summary(index).items():
        expected = fields.get(field)
        if expected is None:
            raise DataError(
                f"{where}: field {field!r} is not in the manifest; convert the data again"
            )
        fits = len(extents) == len(expected.shape) and all(
            extent is None or found == (extent, extent)
            for found, extent in zip(extents, expected.shape, strict=True)
        )
        if dtype != expected.dtype or not fits:
            raise DataError(
                f"{where}: field {field!r} is {dtype} with axes from, to {extents}; "
                f"the manifest says {expected.dtype} {expected.shape}; convert the data again"
            )
    return index


def _places(index: Index, fields: dict[str, Field]) -> np.ndarray:
    """(S, 2 F) int64, the offset of each array, then how many frames it has: 1 if of fixed shape, 0 if absent."""
    places = np.zeros((len(index), 2 * len(fields)), np.int64)
    first = columns(index.arrays)
    for number, (name, field) in enumerate(fields.items()):
        if name in first:
            offset = index.table[:, first[name]]
            time = first[name] + 1 + field.shape.index(None) if None in field.shape else None
            places[:, number] = offset
            places[:, len(fields) + number] = (
                (offset != ABSENT) if time is None else index.table[:, time]
            )
    return places


def _run(future: Future[Opened], work: Callable[[], Opened]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def torch_dtype(name: str) -> torch.dtype:
    return torch.from_numpy(np.empty(0, name)).dtype


def _nothing(dtype: torch.dtype) -> float | int:
    """What stands for a number that is not there."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return -1 if dtype.is_signed else 0
