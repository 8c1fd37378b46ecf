"""The order of an epoch: a pure function of the samples per shard, the seed and the epoch.

Shards are shuffled and laid out in one row, which is cut into groups of equally many samples. In
each group samples are shuffled inside windows of consecutive shards, and global batch k takes the
k-th slice of every group, equally many of each. Nothing here depends on ranks: a rank, or a node of
ranks, takes whole groups of every batch where the numbers divide, and so needs the shards of those
groups only. With one group all samples of a batch lie in one window.

No rank, worker or prefetch depth enters, so every rank computes the same batches without asking
another, and a position is one number. Everything is computed for the windows at hand only: the
order of ten thousand shards costs no more memory than that of twenty.

Random numbers are the raw output of Philox (Salmon et al., SC 2011), whose stream NumPy promises
never to change, turned into a permutation by a stable sort; ``Generator.permutation`` makes no such
promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

# What a permutation is for: each purpose has random numbers of its own.
_SHARDS, _SAMPLES, _BATCHES = range(3)
# Fewer would hardly be shuffled from epoch to epoch, and a border inside a shard would cost more.
SHARDS_OF_A_GROUP = 4

Lengths = Callable[[int], np.ndarray]  # shard number -> (S,) length of each of its samples


class Rows(NamedTuple):
    """Where n samples are stored."""

    shard: np.ndarray  # (n,) int64, shard number of each sample
    row: np.ndarray  # (n,) int64, and its row in that shard

    def take(self, chosen: slice | np.ndarray) -> Rows:
        """The rows at ``chosen``: a slice, indices, or a mask."""
        return Rows(self.shard[chosen], self.row[chosen])


class Part(NamedTuple):
    """One of ``parts`` equal shares of every global batch, such as that of a rank."""

    number: int
    parts: int


WHOLE = Part(0, 1)


@dataclass(frozen=True)
class Sampler:
    """How samples are put in order.

    Args:
        samples: number of samples in each shard, in the manifest's order.
        window: how many shards are mixed at a time, over all groups; at least one of each group. A
            reader holds about twice as many open.
        bucket: number of global batches that are sorted by length and cut anew, to put like
            lengths together; 0: none.
        groups: most groups to make; see ``num_groups``.
    """

    samples: Sequence[int] | np.ndarray
    global_batch: int
    seed: int = 0
    shuffle: bool = True
    window: int = 16
    bucket: int = 0
    drop_last: bool = False
    groups: int = 1

    def __post_init__(self) -> None:
        bounds = (("global_batch", 1), ("window", 1), ("seed", 0), ("bucket", 0), ("groups", 1))
        for name, least in bounds:
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.bucket and not self.shuffle:
            raise ValueError(
                "bucket puts samples in another order, so it needs shuffle; set bucket=0"
            )

    @cached_property
    def num_samples(self) -> int:
        return int(np.sum(self.samples, dtype=np.int64))

    @cached_property
    def total(self) -> int:
        """Samples of an epoch; those of a dropped last batch are not counted."""
        if self.drop_last:
            return self.num_samples - self.num_samples % self.global_batch
        return self.num_samples

    @property
    def steps(self) -> int:
        """Global batches of an epoch, the same in every epoch."""
        return -(-self.total // self.global_batch)

    def batch_samples(self, step: int) -> int:
        """Samples of global batch ``step``."""
        return min(self.total - step * self.global_batch, self.global_batch)

    @cached_property
    def num_groups(self) -> int:
        """The most groups, up to ``groups``, of which a global batch can take equally many samples
        and each has four shards or more; one without shuffling, to keep the order of the files."""
        if not self.shuffle:
            return 1
        most = min(self.groups, len(self.samples) // SHARDS_OF_A_GROUP)
        for number in range(most, 1, -1):
            if self.global_batch % number == 0:
                return number
        return 1

    @property
    def group_window(self) -> int:
        """Shards that are mixed at a time in each group."""
        return -(-self.window // self.num_groups)

    def groups_of(self, part: Part) -> range:
        """The groups of which ``part`` gets samples."""
        first = part.number * self.num_groups // part.parts
        after = -(-(part.number + 1) * self.num_groups // part.parts)
        return range(first, after)

    def shards_in_use(self, part: Part) -> int:
        """How many shards ``part`` needs at a time: two windows of each of its groups, the one at
        hand and the next."""
        return 2 * self.group_window * len(self.groups_of(part))

    def epoch(self, epoch: int, lengths: Lengths) -> Epoch:
        """The order of one epoch. ``lengths`` is asked only for buckets."""
        return Epoch(self, epoch, lengths)


class Epoch:
    """The global batches of one epoch, computed one by one."""

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
        self._groups = [_Group(self, number) for number in range(sampler.num_groups)]

    def batch(self, step: int, part: Part = WHOLE) -> Rows:
        """The samples of global batch ``step``, group by group; or those of one part of it."""
        if not 0 <= step < self.sampler.steps:
            raise IndexError(f"an epoch has {self.sampler.steps} steps, there is no step {step}")
        pieces = []
        for number in self.sampler.groups_of(part):
            rows = self._groups[number].batch(step)
            pieces.append(rows.take(self._share(number, part, len(rows.shard))))
        return _joined(pieces)

    def _share(self, number: int, part: Part, count: int) -> slice:
        """Which of the ``count`` samples that a group gives to a batch are those of ``part``."""
        first_cut = part.number * self.sampler.num_groups
        # Groups are as long as ``parts`` here, and parts as long as there are groups: a border
        # between parts that lies inside this group cuts its samples in the same proportion.
        begin = max(first_cut - number * part.parts, 0)
        end = min(first_cut + self.sampler.num_groups - number * part.parts, part.parts)
        return slice(count * begin // part.parts, count * end // part.parts)

    def first_of(self, step: int, part: Part) -> Rows:
        """One sample of global batch ``step``, near those of ``part``, which may have none."""
        for number in (*self.sampler.groups_of(part), *range(self.sampler.num_groups)):
            rows = self._groups[number].batch(step)
            if len(rows.shard):
                break
        return rows.take(slice(0, 1))

    def upcoming_shards(self, step: int, part: Part = WHOLE) -> list[int]:
        """Shards that ``part`` needs for batch ``step`` and those after it, in the order of need,
        as far as it may hold them: for its samples of this batch and the next, and where these lie
        in the windows of this one, those of the next window of each of its groups."""
        at_hand, following = [], []
        for number in self.sampler.groups_of(part):
            group = self._groups[number]
            here = group.windows_of(step, partial(self._share, number, part))
            after = group.windows_of(step + 1, partial(self._share, number, part))
            last = max(here, default=0)
            new = [window for window in after if window > last] or [last + 1]
            at_hand += [group.window_shards(window) for window in here]
            following += [group.window_shards(window) for window in new]
        nothing = np.empty(0, np.int64)
        upcoming = np.concatenate([nothing, *at_hand, *following]).tolist()
        return list(dict.fromkeys(upcoming))[: self.sampler.shards_in_use(part)]

    def rows_of(self, shard: int, part: Part) -> np.ndarray:
        """The rows of a shard that ``part`` gets in this epoch, where there are no buckets."""
        place = int(np.flatnonzero(self.shards == shard)[0])
        rows = [np.empty(0, np.int64)]
        for number in self.sampler.groups_of(part):
            group = self._groups[number]
            if group.first <= place <= group.last:
                rows.append(group.rows_of(place, partial(self._share, number, part)))
        return np.concatenate(rows)

    def _shard_at(self, position: int) -> int:
        """Which of ``self.shards`` holds the sample at this position of the row of all shards."""
        return int(np.searchsorted(self.ends, position, side="right"))

    def _permutation(self, count: int, purpose: int, *number: int) -> np.ndarray:
        spawn_key = (self.number, purpose, *number)
        key = np.random.SeedSequence(self.sampler.seed, spawn_key=spawn_key)
        numbers = np.random.Philox(key).random_raw(count)
        return np.argsort(numbers, kind="stable")


class _Group:
    """One group's sequence of samples, and the slice of it that belongs to each global batch.

    ``first`` to ``last`` are its shards, as places in ``Epoch.shards``; those at both ends may be
    shared with the neighbouring groups.
    """

    def __init__(self, epoch: Epoch, number: int):
        sampler = epoch.sampler
        groups = sampler.num_groups
        self.epoch = epoch
        self.sampler = sampler
        self.number = number
        # All groups have as many samples, but for one more in each of the last ones.
        least, longer = divmod(sampler.num_samples, groups)
        self.start = number * least + max(number - (groups - longer), 0)
        self.stop = self.start + least + (number >= groups - longer)
        self.first = epoch._shard_at(self.start)
        self.last = max(epoch._shard_at(self.stop - 1), self.first)
        self.batch_size = sampler.global_batch // groups  # of a global batch that is full
        self._windows: dict[int, Rows] = {}
        self._buckets: dict[int, Rows] = {}

    def batch(self, step: int) -> Rows:
        """This group's samples of global batch ``step``."""
        start, stop = step * self.batch_size, self._consumed(step + 1)
        if not self.sampler.bucket:
            return self._sequence(start, stop)
        number = step // self.sampler.bucket
        bucket_start = number * self.sampler.bucket * self.batch_size
        bucket = _cached(self._buckets, number, self._bucket)
        return bucket.take(slice(start - bucket_start, stop - bucket_start))

    def windows_of(self, step: int, share: Callable[[int], slice]) -> list[int]:
        """The windows in which a share of batch ``step`` lies; none behind the last batch.

        Args:
            share: which of so many samples belong to it.
        """
        if step >= self.sampler.steps:
            return []
        start, stop = step * self.batch_size, self._consumed(step + 1)
        if self.sampler.bucket:  # a batch has samples from all of its bucket
            first_step = step // self.sampler.bucket * self.sampler.bucket
            last_step = min(first_step + self.sampler.bucket, self.sampler.steps)
            start, stop = first_step * self.batch_size, self._consumed(last_step)
        else:
            part = share(stop - start)
            start, stop = start + part.start, start + part.stop
        if start >= stop:
            return []
        return list(range(self._window_at(start), self._window_at(stop - 1) + 1))

    def window_shards(self, window: int) -> np.ndarray:
        """The shards of a window of this group; none behind the last."""
        first = self.first + window * self.sampler.group_window
        return self.epoch.shards[first : min(first + self.sampler.group_window, self.last + 1)]

    def rows_of(self, place: int, share: Callable[[int], slice]) -> np.ndarray:
        """The rows of the shard at this place of which a share of each batch consists."""
        window = (place - self.first) // self.sampler.group_window
        rows = self._window(window)
        position = self._window_start(window) + np.arange(len(rows.shard))
        full_end = self._consumed(self.sampler.total // self.sampler.global_batch)
        end = self._consumed(self.sampler.steps)
        of_full, of_last = share(self.batch_size), share(end - full_end)
        offset = position % self.batch_size
        is_taken = (offset >= of_full.start) & (offset < of_full.stop)
        offset = position - full_end  # in the last batch, which is not full
        is_taken_last = (offset >= of_last.start) & (offset < of_last.stop) & (position < end)
        is_taken = np.where(position < full_end, is_taken, is_taken_last)
        return rows.row[is_taken & (rows.shard == self.epoch.shards[place])]

    def _window_at(self, position: int) -> int:
        """The window that holds this position of the group's sequence."""
        shard = self.epoch._shard_at(self.start + position) - self.first
        return shard // self.sampler.group_window

    def _consumed(self, steps: int) -> int:
        """Samples of this group in the first ``steps`` global batches."""
        if steps * self.sampler.global_batch <= self.sampler.total:
            return steps * self.batch_size
        return self.stop - self.start

    def _sequence(self, start: int, stop: int) -> Rows:
        """Positions [start, stop) of the group's sequence before any bucketing."""
        if start >= stop:
            return _joined([])
        pieces = []
        for number in range(self._window_at(start), self._window_at(stop - 1) + 1):
            window_start = self._window_start(number)
            rows = _cached(self._windows, number, self._window)
            first_row = max(start - window_start, 0)
            pieces.append(rows.take(slice(first_row, stop - window_start)))
        return _joined(pieces)

    def _window_start(self, number: int) -> int:
        """Position of a window's first sample in the group's sequence."""
        if not number:
            return 0
        before = self.first + number * self.sampler.group_window - 1
        return int(self.epoch.ends[before]) - self.start

    def _window(self, number: int) -> Rows:
        """All samples of one window of shards that belong to the group, in order."""
        epoch = self.epoch
        first = self.first + number * self.sampler.group_window
        last = min(first + self.sampler.group_window, self.last + 1)
        samples = epoch.samples[first:last]
        shard = np.repeat(epoch.shards[first:last], samples)
        shard_start = np.repeat(np.cumsum(samples) - samples, samples)
        rows = Rows(shard, np.arange(len(shard)) - shard_start)
        # Leave out what belongs to the groups before and behind.
        window_start = int(epoch.ends[first] - epoch.samples[first])
        begin = max(self.start - window_start, 0)
        rows = rows.take(slice(begin, self.stop - window_start))
        if self.sampler.shuffle:
            # The one group's windows have had plain numbers since before there were groups.
            name = (number,) if self.sampler.num_groups == 1 else (self.number, number)
            rows = rows.take(epoch._permutation(len(rows.shard), _SAMPLES, *name))
        return rows

    def _bucket(self, number: int) -> Rows:
        """The group's samples of ``bucket`` global batches, sorted by length and cut into batches
        anew; the batches shuffled again, in all groups alike, so that like lengths meet.

        A last batch that is not full stays last, so that every other batch is.
        """
        size = self.batch_size
        first_step = number * self.sampler.bucket
        last_step = min(first_step + self.sampler.bucket, self.sampler.steps)
        rows = self._sequence(first_step * size, self._consumed(last_step))
        length = np.empty(len(rows.shard), np.int64)
        for shard in np.unique(rows.shard):
            inside = rows.shard == shard
            length[inside] = self.epoch.lengths(int(shard))[rows.row[inside]]
        by_length = np.argsort(length, kind="stable")
        full = min(last_step, self.sampler.total // self.sampler.global_batch) - first_step
        batches = by_length[: full * size].reshape(full, size)
        shuffled = batches[self.epoch._permutation(full, _BATCHES, number)]
        rest = by_length[full * size :]
        return rows.take(np.concatenate([shuffled.ravel(), rest]))


def _joined(pieces: Sequence[Rows]) -> Rows:
    nothing = np.empty(0, np.int64)
    shards = [piece.shard for piece in pieces]
    rows = [piece.row for piece in pieces]
    return Rows(np.concatenate([nothing, *shards]), np.concatenate([nothing, *rows]))


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
