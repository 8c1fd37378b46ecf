"""Samples of one split: read into padded batches, or viewed in place.

Shards come open and checked from ``open_shards``. Batches are read straight into place by
``copy_rows``; views are of a memory map, made when the first is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.names import suggest, unknown_names
from data_shards.reading.buffer_pool import BufferPool
from data_shards.reading.corruption import advice
from data_shards.reading.open_shards import OpenShard, OpenShards
from data_shards.reading.sampler import Rows
from data_shards.reading.storage import Store
from data_shards.shards.index_table import (
    ABSENT,
    JSON,
    JSON_SIZE,
    TEXT,
    TEXT_SIZE,
    bytes_of,
    columns,
    parse_json,
)
from data_shards.shards.manifest import DataError, Field, Shard
from data_shards.shards.shard_table import sample_counts


@dataclass(frozen=True)
class Arrays:
    """The samples of one micro-batch as tensors. Time axes are padded with zeros to the longest
    sample.

    A sample without a field has length 0 there; in a field of fixed shape it holds nan, or -1 for
    signed integers, and zero for other types.
    """

    index: Tensor  # (B,) int64, index of each sample in its split
    weight: Tensor  # (B,) float32, 1 for a sample, 0 for the one row of a part that would be empty
    loss_scale: float  # ranks * micro-batches / samples in the global batch
    # field -> (B, *shape), the None axis of the field as long as its longest sample
    arrays: dict[str, Tensor]
    lengths: dict[str, Tensor]  # field with a None axis -> (B,) int64

    def pin_memory(self) -> Arrays:
        """For DataLoader, which pins what has this method; the stream's own pinned batches are made
        so."""
        return Arrays(
            self.index.pin_memory(),
            self.weight.pin_memory(),
            self.loss_scale,
            {name: array.pin_memory() for name, array in self.arrays.items()},
            {name: length.pin_memory() for name, length in self.lengths.items()},
        )


@dataclass(frozen=True)
class _Layout:
    """How an array of a field lies in memory: ``runs`` runs of frames of ``frame_bytes`` each.

    (T, D) is one run; (3, T) is three. An array without a time axis is one run of one frame.
    """

    shape: tuple[int | None, ...]
    dtype: torch.dtype
    runs: int
    frame_bytes: int
    has_time: bool

    @staticmethod
    def of(field: Field) -> _Layout:
        dtype = _torch_dtype(field.dtype)
        if None in field.shape:
            time = field.shape.index(None)
            before, after = field.shape[:time], field.shape[time + 1 :]
        else:
            before, after = (), field.shape
        runs = prod(extent or 0 for extent in before)
        frame_bytes = prod(extent or 0 for extent in after) * dtype.itemsize
        return _Layout(field.shape, dtype, runs, frame_bytes, None in field.shape)


class Reader:
    """The samples of one split, by shard number and row.

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
        for name in unknown_names(chosen or (), known):
            raise DataError(
                f"{store.name} has no field {name!r}; it has {', '.join(known)}"
                f"{suggest(name, known)}"
            )
        self.store = store
        self.shards = shards
        names = known if chosen is None else chosen
        self.fields = {name: known[name] for name in names}
        self.open_shards = OpenShards(store, shards, known, self.fields, keep=keep, threads=threads)
        samples = sample_counts(shards)
        self.starts = np.cumsum(samples) - samples  # index of each shard's first sample
        self._layouts = {name: _Layout.of(field) for name, field in self.fields.items()}
        self._buffers = BufferPool()
        # By shard number, valid while the shard is in use: its file, and where its locations are.
        self._handles = np.zeros(len(shards), np.int64)
        self._tables = np.zeros(len(shards), np.int64)
        self._tables_lock = Lock()

    def shard(self, number: int) -> OpenShard:
        """An open shard; DataError when it is corrupt."""
        return self.open_shards.get(number)

    def close(self) -> None:
        """Let go of every shard. Arrays that were viewed stay valid."""
        self.open_shards.close()

    def views(self, number: int, row: int) -> dict[str, np.ndarray]:
        """The arrays of one sample, read-only and without a copy. An absent field is not there."""
        return next(self.iter_views(number, (row,)))

    def iter_views(self, number: int, rows: Iterable[int]) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of samples of one shard, as ``views`` gives them."""
        shard = self.open_shards.whole(number)
        offset_columns = columns(shard.index.arrays)
        # Of each field: dtype, and its columns, the offset and then the shape up to ``stop``.
        present = []
        for field in self.fields:
            if field in offset_columns:
                dtype, axes = shard.index.arrays[field]
                column = offset_columns[field]
                stop = column + 1 + axes
                present.append((field, np.dtype(dtype), column, stop))
        content, array = shard.content, np.ndarray
        for row in rows:
            numbers = shard.index.table[row].tolist()
            yield {
                field: array(numbers[column + 1 : stop], dtype, content, numbers[column])
                for field, dtype, column, stop in present
                if numbers[column] != ABSENT
            }

    def record(self, number: int, row: int) -> dict[str, Any]:
        """The JSON of one sample, with at least its ``id``; ``text`` where there is a
        transcript."""
        shard = self.open_shards.whole(number)
        key = shard.index.key(row)
        numbers = shard.index.table[row].tolist()
        record: dict[str, Any] = {}
        if numbers[JSON] != ABSENT:
            body = shard.read(numbers[JSON], numbers[JSON_SIZE])
            record = parse_json(body, self.place(number, row))
        record.setdefault("id", key)
        if numbers[TEXT] != ABSENT:
            text = shard.read(numbers[TEXT], numbers[TEXT_SIZE])
            record["text"] = text.decode("utf-8", "replace")
        return record

    def place(self, number: int, row: int) -> str:
        """Shard and key of one sample, for messages."""
        return f"{self._name(number)}, sample {self.shard(number).index.key(row)!r}"

    def lengths(self, number: int) -> np.ndarray:
        """(S,) int64, bytes of each sample in the fields that are read."""
        return bytes_of(self.shard(number).index, self.fields)

    def collate(self, rows: Rows, pin: bool = False) -> Arrays:
        """The samples of B rows as one padded batch."""
        wanted = {number: rows.row[rows.shard == number] for number in set(rows.shard.tolist())}
        with self.open_shards.in_use(wanted) as shards:
            file, offset, length = self._locate(shards, rows)
            arrays, batch_arrays = self._allocate(length, pin)
            failed = _loops().copy_rows(file, offset, length, batch_arrays)
        if failed >= 0:
            self._refuse_unreadable(int(rows.shard[failed]), int(rows.row[failed]))
        lengths: dict[str, Tensor] = {}
        for number, (name, layout) in enumerate(self._layouts.items()):
            if layout.has_time:
                lengths[name] = torch.from_numpy(length[number])
            elif not length[number].all():
                absent = torch.from_numpy(length[number] == 0)
                arrays[name][absent] = _absent_value(layout.dtype)
        index = torch.from_numpy(self.starts[rows.shard] + rows.row)
        return Arrays(index, torch.ones(len(index)), 1.0, arrays, lengths)

    def _locate(
        self, shards: dict[int, OpenShard], rows: Rows
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """File handles (B,), offsets (F, B) and lengths (F, B) of the arrays of these rows."""
        # Another thread may open these shards anew meanwhile, and so write other addresses.
        with self._tables_lock:
            for number, shard in shards.items():
                self._handles[number], self._tables[number] = shard.addresses
            file = self._handles[rows.shard]
            table = self._tables[rows.shard]
        fields = len(self.fields)
        locations = np.empty((2 * fields, len(file)), np.int64)
        _loops().look_up_rows(table, np.ascontiguousarray(rows.row), locations)
        return file, locations[:fields], locations[fields:]

    def _allocate(self, length: np.ndarray, pin: bool) -> tuple[dict[str, Tensor], np.ndarray]:
        """A padded tensor per field for the (F, B) lengths, not yet filled; and how they lie in
        memory."""
        arrays: dict[str, Tensor] = {}
        described = []
        batch = length.shape[1]
        for number, (name, layout) in enumerate(self._layouts.items()):
            longest = max(int(length[number].max()), 1)
            shape = [longest if extent is None else extent for extent in layout.shape]
            array = self._buffers.tensor((batch, *shape), layout.dtype, pin)
            frames = longest if layout.has_time else 1
            described.append((layout.runs, layout.frame_bytes, frames, array.data_ptr()))
            arrays[name] = array
        return arrays, np.array(described, _loops().BATCH_ARRAY)

    def _refuse_unreadable(self, number: int, row: int) -> None:
        raise DataError(
            f"{self.place(number, row)}: could not be read whole; was the file changed in use? "
            f"{advice(self._name(number))}"
        )

    def _name(self, number: int) -> str:
        return f"{self.store.name}/{self.shards[number].name}"


def _torch_dtype(name: str) -> torch.dtype:
    """The dtype of torch for one of NumPy's."""
    return torch.from_numpy(np.empty(0, name)).dtype


def _absent_value(dtype: torch.dtype) -> float | int:
    """What stands for a number that is not there."""
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return -1 if dtype.is_signed else 0


def _loops() -> ModuleType:
    """The compiled loops, with the first samples that are read: importing numba takes seconds."""
    from data_shards.reading import copy_rows

    return copy_rows
