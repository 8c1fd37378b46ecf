"""The order of an epoch: a pure function of the samples per shard, the seed and the epoch.

Shards are shuffled; samples are shuffled inside a window of consecutive shards; the windows in a row are the epoch's
one global sequence, and global batch k is its slice [k G, (k + 1) G). No rank, worker or prefetch depth enters, so
every rank plans the same batches without asking another, and a position is one number. Everything is computed for
the window at hand only: a plan over ten thousand shards costs no more memory than one over twenty.

Random numbers are the raw output of Philox (Salmon et al., SC 2011), whose stream NumPy promises never to change,
turned into a permutation by a stable sort; ``Generator.permutation`` makes no such promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Rows = tuple[
    np.ndarray, np.ndarray
]  # shard number of each sample, and its row in that shard; both (n,) int64
_SHARDS, _SAMPLES, _BATCHES = range(3)  # what a permutation is for


@dataclass(frozen=True)
class Sampler:
    """How samples are put in order.

    Args:
        samples: number of samples in each shard, in the manifest's order.
        window: how many shards are mixed at a time; a reader holds about twice as many open.
        bucket: number of global batches that are sorted by length and cut anew, to put like lengths together; 0: none.
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

    def epoch(self, epoch: int, lengths: Callable[[int], np.ndarray]) -> Epoch:
        """The plan of one epoch. ``lengths`` gives the length of every sample of a shard; asked only for buckets."""
        return Epoch(self, epoch, lengths)


class Epoch:
    """The global sequence of one epoch, by slices."""

    def __init__(self, order: Sampler, epoch: int, lengths: Callable[[int], np.ndarray]):
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self.order, self.number, self.lengths = order, epoch, lengths
        count = len(order.samples)
        self.shards = self._permutation(count, _SHARDS, 0) if order.shuffle else np.arange(count)
        self.samples = np.asarray(order.samples, np.int64)[self.shards]
        self.ends = np.cumsum(self.samples)  # position after the last sample of each shard
        self._windows: dict[int, Rows] = {}
        self._pools: dict[int, Rows] = {}

    def batch(self, step: int) -> Rows:
        """Global batch ``step``."""
        size = self.order.global_batch
        start, stop = step * size, min((step + 1) * size, self.order.total)
        if not 0 <= start < stop:
            raise IndexError(f"an epoch has {self.order.steps} steps, there is no step {step}")
        if not self.order.bucket:
            return self._slice(start, stop)
        pool = _remembered(self._pools, step // self.order.bucket, self._pool)
        first = step // self.order.bucket * self.order.bucket * size
        return pool[0][start - first : stop - first], pool[1][start - first : stop - first]

    def needed(self, step: int) -> list[int]:
        """Shards that batch ``step`` and those after it need, in the order of need, to the end of the next window."""
        at = int(np.searchsorted(self.ends, step * self.order.global_batch, side="right"))
        window = self.order.window
        first = at // window * window if self.order.shuffle else at
        return [int(shard) for shard in self.shards[first : first + 2 * window]]

    def _slice(self, start: int, stop: int) -> Rows:
        """Positions [start, stop) of the sequence before any bucketing."""
        if start >= stop:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        window, parts = self.order.window, []
        first = int(np.searchsorted(self.ends, start, side="right")) // window
        last = int(np.searchsorted(self.ends, stop - 1, side="right")) // window
        for number in range(first, last + 1):
            begin = int(self.ends[number * window - 1]) if number else 0
            shard, row = _remembered(self._windows, number, self._window)
            parts.append(
                (
                    shard[max(start - begin, 0) : stop - begin],
                    row[max(start - begin, 0) : stop - begin],
                )
            )
        return np.concatenate([part[0] for part in parts]), np.concatenate(
            [part[1] for part in parts]
        )

    def _window(self, number: int) -> Rows:
        """All samples of one window of shards, in order."""
        inside = slice(number * self.order.window, (number + 1) * self.order.window)
        samples = self.samples[inside]
        shard = np.repeat(self.shards[inside], samples)
        row = np.arange(len(shard)) - np.repeat(np.cumsum(samples) - samples, samples)
        if self.order.shuffle:
            mixed = self._permutation(len(shard), _SAMPLES, number)
            shard, row = shard[mixed], row[mixed]
        return shard, row

    def _pool(self, number: int) -> Rows:
        """``bucket`` global batches, cut from their samples sorted by length; the batches shuffled again.

        A last batch that is not full stays last, so that every other batch is.
        """
        size = self.order.global_batch
        start = number * self.order.bucket * size
        shard, row = self._slice(start, min(start + self.order.bucket * size, self.order.total))
        length = np.empty(len(shard), np.int64)
        for one in np.unique(shard):
            here = shard == one
            length[here] = self.lengths(int(one))[row[here]]
        by_length = np.argsort(length, kind="stable")
        full = len(shard) // size
        batches = self._permutation(full, _BATCHES, number)
        mixed = np.concatenate(
            [
                by_length[: full * size].reshape(full, size)[batches].ravel(),
                by_length[full * size :],
            ]
        )
        return shard[mixed], row[mixed]

    def _permutation(self, count: int, purpose: int, number: int) -> np.ndarray:
        key = np.random.SeedSequence(self.order.seed, spawn_key=(self.number, purpose, number))
        return np.argsort(np.random.Philox(key).random_raw(count), kind="stable")


def even_split(count: int, parts: int) -> list[slice]:
    """``count`` samples in ``parts`` contiguous parts whose sizes differ by at most one."""
    edges = [part * count // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]


def _remembered(made: dict[int, Rows], number: int, make: Callable[[int], Rows]) -> Rows:
    """``make(number)``, kept while a neighbour may be asked for in turn."""
    if number not in made:
        while len(made) > 1:
            made.pop(max(made, key=lambda other: abs(other - number)))
        made[number] = make(number)
    return made[number]


def locate(starts: Sequence[int] | np.ndarray, index: np.ndarray) -> Rows:
    """Shard and row of samples given by their place in the split; ``starts`` holds the place of each shard's first."""
    shard = np.searchsorted(np.asarray(starts), index, side="right") - 1
    return shard, index - np.asarray(starts)[shard]
