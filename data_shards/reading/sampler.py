"""The order of an epoch: a pure function of the samples per shard, the seed and the epoch.

Shards are shuffled; samples are shuffled inside a window of consecutive shards; the windows in a
row are the epoch's one global sequence, and global batch k is its slice [k G, (k + 1) G). No rank,
worker or prefetch depth enters, so every rank computes the same batches without asking another, and
a position is one number. Everything is computed for the window at hand only: the order of ten
thousand shards costs no more memory than that of twenty.

Random numbers are the raw output of Philox (Salmon et al., SC 2011), whose stream NumPy promises
never to change, turned into a permutation by a stable sort; ``Generator.permutation`` makes no such
promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# What a permutation is for: each purpose has random numbers of its own.
_SHARDS, _SAMPLES, _BATCHES = range(3)

Lengths = Callable[[int], np.ndarray]  # shard number -> (S,) length of each of its samples


class Rows(NamedTuple):
    """Where n samples are stored."""

    shard: np.ndarray  # (n,) int64, shard number of each sample
    row: np.ndarray  # (n,) int64, and its row in that shard

    def take(self, chosen: slice | np.ndarray) -> Rows:
        """The rows at ``chosen``: a slice, indices, or a mask."""
        return Rows(self.shard[chosen], self.row[chosen])


@dataclass(frozen=True)
class Sampler:
    """How samples are put in order.

    Args:
        samples: number of samples in each shard, in the manifest's order.
        window: how many shards are mixed at a time; a reader holds about twice as many open.
        bucket: number of global batches that are sorted by length and cut anew, to put like
            lengths together; 0: none.
    """

    samples: tuple[int, ...]
    global_batch: int
    seed: int = 0
    shuffle: bool = True
    window: int = 16
    bucket: int = 0
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name, least in (("global_batch", 1), ("window", 1), ("seed", 0), ("bucket", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.bucket and not self.shuffle:
            raise ValueError(
                "bucket puts samples in another order, so it needs shuffle; set bucket=0"
            )

    @property
    def total(self) -> int:
        """Samples of an epoch; those of a dropped last batch are not counted."""
        total = sum(self.samples)
        return total - total % self.global_batch if self.drop_last else total

    @property
    def steps(self) -> int:
        """Global batches of an epoch, the same in every epoch."""
        return -(-self.total // self.global_batch)

    def epoch(self, epoch: int, lengths: Lengths) -> Epoch:
        """The order of one epoch. ``lengths`` is asked only for buckets."""
        return Epoch(self, epoch, lengths)


class Epoch:
    """The global sequence of one epoch, computed slice by slice."""

    def __init__(self, sampler: Sampler, epoch: int, lengths: Lengths):
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self.sampler = sampler
        self.number = epoch
        self.lengths = lengths
        count = len(sampler.samples)
        if sampler.shuffle:
            self.shards = self._permutation(count, _SHARDS, 0)
        else:
            self.shards = np.arange(count)
        # In the order of self.shards: samples of each shard, and the position after its last one.
        self.samples = np.asarray(sampler.samples, np.int64)[self.shards]
        self.ends = np.cumsum(self.samples)
        self._windows: dict[int, Rows] = {}
        self._buckets: dict[int, Rows] = {}

    def batch(self, step: int) -> Rows:
        """The samples of global batch ``step``."""
        size = self.sampler.global_batch
        start = step * size
        stop = min(start + size, self.sampler.total)
        if not 0 <= start < stop:
            raise IndexError(f"an epoch has {self.sampler.steps} steps, there is no step {step}")
        if not self.sampler.bucket:
            return self._sequence(start, stop)
        number = step // self.sampler.bucket
        bucket_start = number * self.sampler.bucket * size
        bucket = _cached(self._buckets, number, self._bucket)
        return bucket.take(slice(start - bucket_start, stop - bucket_start))

    def upcoming_shards(self, step: int) -> list[int]:
        """Shards that batch ``step`` and those after it need, in the order of need, to the end of
        the next window."""
        window = self.sampler.window
        first = self._shard_at(step * self.sampler.global_batch)
        if self.sampler.shuffle:
            first = first // window * window
        return self.shards[first : first + 2 * window].tolist()

    def _shard_at(self, position: int) -> int:
        """Which of ``self.shards`` holds the sample at this position of the unshuffled sequence."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def _sequence(self, start: int, stop: int) -> Rows:
        """Positions [start, stop) of the sequence before any bucketing."""
        if start >= stop:
            nothing = np.empty(0, np.int64)
            return Rows(nothing, nothing)
        window = self.sampler.window
        first = self._shard_at(start) // window
        last = self._shard_at(stop - 1) // window
        pieces = []
        for number in range(first, last + 1):
            window_start = int(self.ends[number * window - 1]) if number else 0
            rows = _cached(self._windows, number, self._window)
            first_row = max(start - window_start, 0)
            pieces.append(rows.take(slice(first_row, stop - window_start)))
        shards, rows_in_shards = zip(*pieces, strict=True)
        return Rows(np.concatenate(shards), np.concatenate(rows_in_shards))

    def _window(self, number: int) -> Rows:
        """All samples of one window of shards, in order."""
        first = number * self.sampler.window
        last = first + self.sampler.window
        samples = self.samples[first:last]
        shard = np.repeat(self.shards[first:last], samples)
        shard_start = np.repeat(np.cumsum(samples) - samples, samples)
        rows = Rows(shard, np.arange(len(shard)) - shard_start)
        if self.sampler.shuffle:
            rows = rows.take(self._permutation(len(shard), _SAMPLES, number))
        return rows

    def _bucket(self, number: int) -> Rows:
        """``bucket`` global batches, cut from their samples sorted by length; the batches shuffled
        again.

        A last batch that is not full stays last, so that every other batch is.
        """
        size = self.sampler.global_batch
        start = number * self.sampler.bucket * size
        stop = min(start + self.sampler.bucket * size, self.sampler.total)
        rows = self._sequence(start, stop)
        length = np.empty(len(rows.shard), np.int64)
        for shard in np.unique(rows.shard):
            inside = rows.shard == shard
            length[inside] = self.lengths(int(shard))[rows.row[inside]]
        by_length = np.argsort(length, kind="stable")
        full = len(by_length) // size
        batches = by_length[: full * size].reshape(full, size)
        shuffled = batches[self._permutation(full, _BATCHES, number)]
        rest = by_length[full * size :]
        return rows.take(np.concatenate([shuffled.ravel(), rest]))

    def _permutation(self, count: int, purpose: int, number: int) -> np.ndarray:
        spawn_key = (self.number, purpose, number)
        key = np.random.SeedSequence(self.sampler.seed, spawn_key=spawn_key)
        numbers = np.random.Philox(key).random_raw(count)
        return np.argsort(numbers, kind="stable")


def even_split(count: int, parts: int) -> list[slice]:
    """``count`` samples in ``parts`` contiguous slices whose sizes differ by at most one."""
    edges = [part * count // parts for part in range(parts + 1)]
    return [slice(edges[part], edges[part + 1]) for part in range(parts)]


def locate(starts: Sequence[int] | np.ndarray, index: np.ndarray) -> Rows:
    """Where samples are stored, given by their index in the split.

    Args:
        starts: the index of each shard's first sample.
    """
    starts = np.asarray(starts)
    shard = np.searchsorted(starts, index, side="right") - 1
    return Rows(shard, index - starts[shard])


def _cached(computed: dict[int, Rows], number: int, compute: Callable[[int], Rows]) -> Rows:
    """``compute(number)``, kept together with its nearest neighbour: batches cross their border."""
    if number not in computed:
        while len(computed) > 1:
            farthest = max(computed, key=lambda other: abs(other - number))
            del computed[farthest]
        computed[number] = compute(number)
    return computed[number]
