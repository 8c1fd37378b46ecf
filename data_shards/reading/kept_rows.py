"""Which samples of a split take part, where those without any modality are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.command import Refused
from data_shards.reading.open_shards import read_index
from data_shards.reading.sampler import Epoch, Part, Rows
from data_shards.reading.storage import Store
from data_shards.shards.index_table import bytes_of
from data_shards.shards.manifest import DataError, Field, Shard
from data_shards.shards.shard_table import sample_counts


@dataclass(frozen=True)
class KeptRows:
    """The rows of each shard that take part, in their order; None: all do."""

    rows: Sequence[np.ndarray] | None
    counts: np.ndarray  # (S,) int64, of each of S shards

    @staticmethod
    def all_of(shards: Sequence[Shard]) -> KeptRows:
        return KeptRows(None, sample_counts(shards))

    @staticmethod
    def with_any(
        store: Store, shards: Sequence[Shard], known: Mapping[str, Field], read: Iterable[str]
    ) -> KeptRows:
        """Those with anything in a field that has a time axis. Every shard's index is read.

        Args:
            known: all fields of the data.
            read: the names of those that count.

        Raises:
            DataError: no sample has any.
        """
        modalities = [name for name in read if None in known[name].shape]
        rows = []
        for shard in shards:
            try:
                index = read_index(store, shard, dict(known))
            except Refused:  # the shard is corrupt, and dealt with when it is opened
                rows.append(np.arange(shard.samples))
            else:
                rows.append(np.flatnonzero(bytes_of(index, modalities) > 0))
        counts = np.array([len(kept) for kept in rows], np.int64)
        if not counts.any():
            raise DataError(
                f"no sample of {store.name} has any of its modalities: {', '.join(modalities) or 'none'}"
            )
        return KeptRows(rows, counts)

    def stored(self, rows: Rows) -> Rows:
        """Where samples are stored, given their places among those that take part."""
        if self.rows is None:
            return rows
        stored = np.empty_like(rows.row)
        for number in np.unique(rows.shard):
            inside = rows.shard == number
            stored[inside] = self.rows[number][rows.row[inside]]
        return Rows(rows.shard, stored)

    def rows_of(self, order: Epoch, parts: Sequence[Part]) -> Callable[[int], np.ndarray]:
        """Shard number -> the rows, as they are stored, that these parts get in an epoch."""

        def rows_of(number: int) -> np.ndarray:
            rows = np.concatenate([order.rows_of(number, part) for part in parts])
            return self.stored(Rows(np.full(len(rows), number), rows)).row

        return rows_of

    def of_shard(self, number: int, values: np.ndarray) -> np.ndarray:
        """Of values for each sample of a shard, those of the samples that take part."""
        return values if self.rows is None else values[self.rows[number]]
