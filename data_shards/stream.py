"""Batches of a shard folder or URL: exact, the same for any number of ranks, resumable anywhere.

    stream = Stream("shards/mosi", "train", global_batch=64, rank=rank, ranks=ranks)
    for epoch in range(epochs):
        for micro_batches in stream.epoch(epoch):  # one optimiser step
            ...  # use them
            stream.mark_consumed()  # from here on a saved state no longer contains this step

The path of a batch, each stop a file of ``data_shards/reading``:

    sampler      the order of the epoch: which samples (shard, row) are global batch k
    stream       (this file) this rank's even share of them, cut into micro-batches; the position
    open_shards  the shards they lie in, fetched (storage: a folder; remote: a URL), checked, open
    reader       where their arrays lie in those files, and padded tensors to hold them; media are
                 decoded there by threads (data_shards/media)
    copy_rows    the bytes, from the files straight into the tensors
    prefetcher   all of this by a background thread, some steps ahead of the caller

Every rank computes the same global batches and copies only its own samples, so all ranks make the
same number of steps without a collective. The position is the number of samples consumed, never of
samples prefetched. A step counts as consumed when the caller says so, or asks for the next one; a
state saved in between starts with this very step again. So save after ``mark_consumed()`` and the
optimiser's step, in either order, before the next step.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from core.command import Refused
from data_shards.media.batch_decoder import Decoding, MediaReader
from data_shards.reading.corruption import SkippedShards
from data_shards.reading.kept_rows import KeptRows
from data_shards.reading.open_shards import read_index
from data_shards.reading.position import Position, position_in
from data_shards.reading.prefetcher import Prefetcher
from data_shards.reading.reader import Arrays
from data_shards.reading.sampler import Epoch, Part, Rows, Sampler, even_split, locate
from data_shards.reading.storage import open_manifest, open_store
from data_shards.shards.index_table import bytes_of
from data_shards.shards.manifest import MANIFEST, DataError
from data_shards.shards.shard_table import byte_counts, sample_counts

BUCKET = 32  # global batches that bucket=True sorts by length at a time

Indices = Sequence[int] | np.ndarray | torch.Tensor  # of samples in their split


class Stream:
    """One split of a data set, as steps of one rank.

    Args:
        source: a shard folder, or its URL (https, s3, gs).
        global_batch: samples of one optimiser step, over all ranks and micro-batches.
        micro_batches: parts that one rank gets of a global batch.
        shuffle: off gives the order of the files.
        window: shards mixed at a time.
        groups: most groups that shards are dealt into. Each global batch takes equally many samples
            of each group, and a rank takes whole groups where the numbers divide: it needs the
            shards of its groups only. With 1, as without shuffling, every rank needs every shard.
        drop_last: leave out the last batch of an epoch when it is not full, or else split it.
        bucket: sort so many global batches by length and cut them anew; True for 32. Less padding.
        prefetch: steps made ahead by a background thread; 0 makes each when asked.
        on_corrupt: "skip" leaves out the samples of corrupt shards, for which each rank checks
            every shard. "fail" raises.
        max_skipped_fraction: with "skip", the share of the split's samples that may be left out
            before it fails all the same.
        cache, cache_gb, options: for URLs, the local folder for shards, its bound, and fsspec's
            storage options.
        connections: for URLs, requests under way at a time on this machine; 0: by latency.
        ranges: for URLs, fetch samples alone where an epoch needs under a quarter of a shard.
        fields: which fields to read; all by default.
        keep_empty: off leaves out the samples that have none of the modalities that are read.
        decode_threads, longest_clip: of sound and pictures that are stored as files, see
            ``Decoding``.
    """

    def __init__(
        self,
        source: str | Path,
        split: str,
        *,
        global_batch: int,
        rank: int = 0,
        ranks: int = 1,
        micro_batches: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        window: int = 16,
        groups: int = 1,
        drop_last: bool = False,
        bucket: bool | int = False,
        prefetch: int = 2,
        pin_memory: bool = False,
        on_corrupt: Literal["fail", "skip"] = "fail",
        max_skipped_fraction: float = 0.01,
        cache: Path | None = None,
        cache_gb: float = 50.0,
        options: dict[str, Any] | None = None,
        connections: int = 0,
        ranges: bool = False,
        fields: Sequence[str] | None = None,
        keep_empty: bool = True,
        decode_threads: int = 0,
        longest_clip: float = 600.0,
    ):
        # What a copy is made with, here or in another process.
        arguments = dict(locals())
        arguments.pop("self")
        self._arguments = arguments
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be in 0 to {ranks - 1}, got {rank}")
        if micro_batches < 1 or prefetch < 0:
            raise ValueError(
                f"micro_batches must be positive and prefetch not negative: {micro_batches}, "
                f"{prefetch}"
            )
        if on_corrupt not in ("fail", "skip"):
            raise ValueError(f"on_corrupt must be 'fail' or 'skip', got {on_corrupt!r}")
        self.split = split
        self.rank = rank
        self.ranks = ranks
        self.micro_batches = micro_batches
        self.prefetch, self.on_corrupt = prefetch, on_corrupt
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.ranges = ranges and not bucket and on_corrupt == "fail"

        self.store = open_store(source, cache, cache_gb, options, connections)
        self.manifest, self.manifest_sha256 = open_manifest(self.store)
        if split not in self.manifest.splits:
            raise DataError(
                f"{self.store.name}/{MANIFEST} has no split {split!r}; it has "
                f"{', '.join(self.manifest.splits)}"
            )
        shards = self.manifest.splits[split]
        self.kept = KeptRows.all_of(shards)
        if not keep_empty:
            known = self.manifest.fields
            self.kept = KeptRows.with_any(self.store, shards, known, fields or known)
        self.sampler = Sampler(
            self.kept.counts,
            global_batch,
            seed=seed,
            shuffle=shuffle,
            window=window,
            bucket=BUCKET if bucket is True else int(bucket),
            drop_last=drop_last,
            groups=groups,
        )
        self.part = Part(rank, ranks)
        # Two windows: the one at hand, and the next, which is opened ahead.
        in_use = self.sampler.shards_in_use(self.part)
        largest = int(np.sort(byte_counts(shards))[-in_use:].sum())
        if largest > self.store.capacity():
            raise ValueError(
                f"cache_gb={cache_gb:g} cannot hold two windows of {in_use // 2} shards; "
                f"give at least cache_gb={largest / 1e9:.3g}, or a smaller window"
            )
        self.reader = MediaReader(
            self.store,
            shards,
            self.manifest.fields,
            fields,
            keep=in_use,
            threads=self.store.openers if prefetch else 0,
            decoding=Decoding(on_corrupt, max_skipped_fraction, decode_threads, longest_clip),
        )
        self.skipped_shards = SkippedShards(split, sample_counts(shards), max_skipped_fraction)
        self._num_stored = self.manifest.samples(split)
        # Seconds spent in epoch(): waiting for data, and in all, the caller's work included.
        self.wait_seconds = self.seconds = 0.0
        self._position = Position(0, 0)
        self._after_step: Position | None = None  # the position once the step at hand is consumed
        for number in self.store.shards_of_wrong_size(shards):
            self._usable(number)  # says what is lost, or skips it

    def __len__(self) -> int:
        """Samples of the split, those that are left out included."""
        return self._num_stored

    def steps(self, epoch: int = 0) -> int:
        """Steps of an epoch, the same on every rank; fewer only where a whole batch lies in skipped
        shards."""
        return self.sampler.steps

    def epoch(self, epoch: int) -> Iterator[list[Arrays]]:
        """The steps of ``epoch`` from the current position, or from its start when the position is
        in another epoch."""
        order = self.epoch_order(epoch)
        rest = range(self.next_step(epoch), self.sampler.steps)
        if self.ranges:
            count = self.ranks * self.micro_batches
            parts = [Part(self._part_number(n), count) for n in range(self.micro_batches)]
            self.reader.open_shards.need(self.kept.rows_of(order, parts))
        with Prefetcher(
            partial(self.make_step, order),
            partial(order.upcoming_shards, part=self.part),
            self.reader.open_shards,
            rest,
            self.prefetch,
        ) as steps:
            yield from self.track(epoch, steps)

    def next_step(self, epoch: int) -> int:
        """The step of ``epoch`` that comes next: 0 when the position is in another epoch."""
        if self._position.epoch != epoch:
            return 0
        return -(-self._position.samples // self.sampler.global_batch)

    def epoch_order(self, epoch: int) -> Epoch:
        """The order of an epoch; the same on every rank."""
        return self.sampler.epoch(epoch, self._kept_lengths)

    def make_step(self, order: Epoch, step: int) -> list[Arrays]:
        """This rank's micro-batches of one step; empty when all samples of it lie in skipped
        shards."""
        parts = self.ranks * self.micro_batches
        numbers = [self._part_number(number) for number in range(self.micro_batches)]
        if self.on_corrupt == "skip":
            rows = self._without_skipped(self.kept.stored(order.batch(step)))
            count = len(rows.shard)
            slices = even_split(count, parts)
            shares = [rows.take(slices[number]) for number in numbers]
        else:
            count = self.sampler.batch_samples(step)
            shares = [self.kept.stored(order.batch(step, Part(n, parts))) for n in numbers]
            rows = max(shares, key=lambda share: len(share.shard))
            if not len(rows.shard):
                rows = self.kept.stored(order.first_of(step, self.part))
        if not count:
            return []
        made = [self._collate(share, rows.take(slice(0, 1))) for share in shares]
        return [replace(micro_batch, loss_scale=parts / count) for micro_batch in made]

    def _part_number(self, micro_batch: int) -> int:
        """Which of all ranks' micro-batches of a step, in their order, is this rank's
        ``micro_batch``."""
        if self.sampler.num_groups == 1:
            # Ranks side by side: a sorted batch gives them like lengths.
            return micro_batch * self.ranks + self.rank
        return self.rank * self.micro_batches + micro_batch

    def track(
        self, epoch: int, steps: Iterable[tuple[int, list[Arrays]]]
    ) -> Iterator[list[Arrays]]:
        """Hand on numbered steps of ``epoch`` from the next one, and keep the position and the time
        waited."""
        self._position = self._position_before(epoch, self.next_step(epoch))
        self._after_step = None
        counted_until = asked = time.perf_counter()
        for step, micro_batches in steps:
            now = time.perf_counter()
            self.wait_seconds += now - asked
            self.seconds += now - counted_until
            counted_until = now
            self._after_step = self._position_before(epoch, step + 1)
            if micro_batches:
                yield micro_batches
            asked = time.perf_counter()
            self.mark_consumed()

    def mark_consumed(self) -> None:
        """The step at hand has been used: a state saved from now on does not contain it."""
        if self._after_step is not None:
            self._position = self._after_step
            self._after_step = None

    @property
    def wait_share(self) -> float:
        """Share of the time in ``epoch`` that was spent waiting for data."""
        return self.wait_seconds / self.seconds if self.seconds else 0.0

    @property
    def skipped(self) -> int:
        """Samples that an epoch lacks because their shards are corrupt, as far as is known."""
        return self.skipped_shards.num_samples

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position of. Plain JSON, the same on every rank."""
        return {**self._position._asdict(), **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, with any number of ranks and micro-batches.

        Raises:
            DataError: the state belongs to another order of samples, or is none.
        """
        self._position = position_in(state, self._identity, self.sampler)
        self._after_step = None

    def ids(self, indices: Indices) -> list[str]:
        """The source's names of samples given by their index in the split."""
        return [str(record["id"]) for record in self.records(indices)]

    def records(self, indices: Indices) -> list[dict[str, Any]]:
        """What is stored as JSON with samples given by their index in the split, and ``text``."""
        index = np.asarray(indices, np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(
                f"{self.split} has {len(self)} samples, asked for {index.min()} to {index.max()}"
            )
        rows = locate(self.reader.starts, index)
        records: list[dict[str, Any]] = [{}] * len(index)
        for at in np.argsort(rows.shard, kind="stable"):  # each shard is opened once
            shard, row = rows.shard[at], rows.row[at]
            records[at] = self.reader.record(int(shard), int(row))
        return records

    def close(self) -> None:
        """Let go of threads and shards."""
        self.reader.close()

    def copy(self, **changes: Any) -> Stream:
        """A stream like this one, but for ``changes``, with nothing open and the same position."""
        return _restore(self._arguments | changes, self._position)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._arguments, self._position)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What a position depends on; another value of any of these gives another order."""
        identity = {
            "split": self.split,
            "manifest": self.manifest_sha256,
            "global_batch": self.sampler.global_batch,
            "seed": self.sampler.seed,
            "shuffle": self.sampler.shuffle,
            "window": self.sampler.window,
            "bucket": self.sampler.bucket,
        }
        if self.sampler.num_groups > 1:
            identity["groups"] = self.sampler.num_groups
        if self.kept.rows is not None:
            identity["left_out"] = len(self) - self.sampler.num_samples
        return identity

    def _position_before(self, epoch: int, step: int) -> Position:
        samples = step * self.sampler.global_batch
        return Position(epoch, min(samples, self.sampler.total))

    def _collate(self, rows: Rows, filler: Rows) -> Arrays:
        """The micro-batch of these rows; where there are none, the one row ``filler`` of weight
        0."""
        if len(rows.shard):
            return self.reader.collate(rows, self.pin_memory)
        made = self.reader.collate(filler, self.pin_memory)
        return replace(made, weight=torch.zeros(1))

    def _without_skipped(self, rows: Rows) -> Rows:
        """The rows whose shards are whole."""
        kept = np.ones(len(rows.shard), bool)
        for number in np.unique(rows.shard):
            if not self._usable(int(number)):
                kept &= rows.shard != number
        return rows.take(kept)

    def _kept_lengths(self, number: int) -> np.ndarray:
        """Length of each sample of a shard that takes part."""
        return self.kept.of_shard(number, self._lengths(number))

    def _lengths(self, number: int) -> np.ndarray:
        """(S,) length of each sample of a shard, also of one that is skipped: the order of the
        others depends on it."""
        if self.on_corrupt == "fail" or self._usable(number):
            return self.reader.lengths(number)
        shard = self.reader.shards[number]
        try:
            index = read_index(self.store, shard, self.manifest.fields)
        except Refused:  # the index is lost too
            return np.zeros(shard.samples, np.int64)
        return bytes_of(index, self.reader.fields)

    def _usable(self, number: int) -> bool:
        """Whether a shard is whole. One that is not is skipped from now on, or raises, as
        ``on_corrupt`` says."""
        if number in self.skipped_shards:
            return False
        try:
            self.reader.shard(number)
        except Refused as error:
            if self.on_corrupt == "fail":
                raise
            self.skipped_shards.add(number, error)
            return False
        return True


def _restore(arguments: dict[str, Any], position: tuple[int, int]) -> Stream:
    stream = Stream(**arguments)
    stream._position = Position(*position)
    return stream
