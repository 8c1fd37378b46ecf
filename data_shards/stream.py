"""Batches of a shard folder or URL: exact, the same for any number of ranks, resumable at every step.

    stream = Stream("shards/mosi", "train", global_batch=64, rank=rank, ranks=ranks)
    for epoch in range(epochs):
        for parts in stream.epoch(epoch):  # one optimiser step: a list of micro-batches
            ...                            # use them
            stream.mark_consumed()              # from here on a saved state no longer contains this step

Every rank plans the same global batches (``order``) and copies only its own samples, so all ranks make the same
number of steps without a collective. The position is the number of samples consumed, never of samples prefetched.
A step counts as consumed when the caller says so, or asks for the next one; a state saved in between starts with
this very step again. So save after ``mark_consumed()`` and the optimiser's step, in either order, before the next step.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.reading.reader import Arrays, Reader, read_index
from data_shards.reading.sampler import Epoch, Sampler, even_split, locate
from data_shards.reading.storage import open_store
from data_shards.shards.index_table import bytes_of
from data_shards.shards.manifest import DataError, Manifest, parse_manifest

log = logging.getLogger(__name__)


class Stream:
    """One split of a data set, as steps of one rank.

    Args:
        source: a shard folder, or its URL (https, s3, gs).
        global_batch: samples of one optimiser step, over all ranks and micro-batches.
        micro_batches: parts that one rank gets of a global batch.
        shuffle: off gives the order of the files.
        window: shards mixed at a time.
        drop_last: leave out the last batch of an epoch when it is not full. Otherwise it is split as evenly as can be.
        bucket: sort this many global batches by length and cut them anew; True for 32. Less padding, like lengths on
            all ranks, the same exactness.
        prefetch: steps made ahead by a background thread; 0 makes each when asked.
        on_corrupt: "skip" leaves out the samples of damaged shards, on every rank alike; each rank then checks every
            shard. "fail" raises.
        max_skipped_fraction: with "skip", the share of the split's samples that may be left out
            before it fails all the same.
        cache, cache_gb, options: for URLs, the local folder for shards, its bound, and fsspec's storage options.
        fields: which fields to read; all by default.
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
        drop_last: bool = False,
        bucket: bool | int = False,
        prefetch: int = 2,
        pin_memory: bool = False,
        on_corrupt: str = "fail",
        max_skipped_fraction: float = 0.01,
        cache: Path | None = None,
        cache_gb: float = 50.0,
        options: dict[str, Any] | None = None,
        fields: Sequence[str] | None = None,
    ):
        self._made_with = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be in 0 to {ranks - 1}, got {rank}")
        if micro_batches < 1 or prefetch < 0:
            raise ValueError(
                f"micro_batches must be positive and prefetch not negative: {micro_batches}, {prefetch}"
            )
        if on_corrupt not in ("fail", "skip"):
            raise ValueError(f"on_corrupt must be 'fail' or 'skip', got {on_corrupt!r}")
        self.store = open_store(source, cache, cache_gb, options)
        body = self.store.manifest()
        self.manifest: Manifest = parse_manifest(body, f"{self.store.name}/manifest.json")
        self.manifest_sha256 = hashlib.sha256(body).hexdigest()
        if split not in self.manifest.splits:
            raise DataError(
                f"{self.store.name} has no split {split!r}; it has {', '.join(self.manifest.splits)}"
            )
        self.split, self.rank, self.ranks, self.micro_batches = split, rank, ranks, micro_batches
        self.prefetch, self.on_corrupt, self.max_skipped_fraction = (
            prefetch,
            on_corrupt,
            max_skipped_fraction,
        )
        self.pin_memory = pin_memory and torch.cuda.is_available()
        shards = self.manifest.splits[split]
        self.order = Sampler(
            tuple(shard.samples for shard in shards),
            global_batch,
            seed=seed,
            shuffle=shuffle,
            window=window,
            bucket=32 if bucket is True else int(bucket),
            drop_last=drop_last,
        )
        self.reader = Reader(
            self.store,
            shards,
            self.manifest.fields,
            fields,
            keep=2 * window,
            threads=2 if prefetch else 0,
        )
        needed = sum(sorted(shard.bytes for shard in shards)[-2 * window :])
        if needed > self.store.room():
            raise ValueError(
                f"cache_gb={cache_gb:g} cannot hold two windows of {window} shards; "
                f"give at least cache_gb={needed / 1e9:.3g}, or a smaller window"
            )
        self.damaged: dict[
            int, str
        ] = {}  # shard number -> what is wrong with it; with on_corrupt="skip"
        self.wait_seconds = 0.0  # spent waiting for data in epoch()
        self.seconds = 0.0  # spent in epoch() in all, the caller's work included
        self._position = (0, 0)  # epoch, samples consumed of it
        self._outstanding: tuple[int, int] | None = (
            None  # the position once the step at hand is consumed
        )
        for number in self.store.wrong_sizes(shards):
            try:
                self.reader.shard(number)  # says what is lost
            except DataError as error:
                self._damage(number, error)

    def __len__(self) -> int:
        """Samples of the split."""
        return sum(self.order.samples)

    def steps(self, epoch: int = 0) -> int:
        """Steps of an epoch, the same on every rank; fewer only where a whole batch lies in skipped shards."""
        return self.order.steps

    def epoch(self, epoch: int) -> Iterator[list[Arrays]]:
        """The steps of ``epoch`` from the current position, or from its start when the position is in another epoch."""
        first = self.first_step(epoch)
        with _Ahead(self, epoch, first) as steps:
            yield from self.counted(epoch, steps)

    def first_step(self, epoch: int) -> int:
        """The step of ``epoch`` that comes next: 0 when the position is in another epoch."""
        return -(-self._position[1] // self.order.global_batch) if self._position[0] == epoch else 0

    def counted(
        self, epoch: int, steps: Iterable[tuple[int, list[Arrays]]]
    ) -> Iterator[list[Arrays]]:
        """Hand on numbered steps of ``epoch`` from the next one, and keep the position and the time waited."""
        self._position = (
            epoch,
            min(self.first_step(epoch) * self.order.global_batch, self.order.total),
        )
        self._outstanding = None
        entered = waited = time.perf_counter()
        for step, parts in steps:
            now = time.perf_counter()
            self.wait_seconds += now - waited
            self.seconds, entered = self.seconds + now - entered, now
            self._outstanding = (epoch, min((step + 1) * self.order.global_batch, self.order.total))
            if parts:
                yield parts
            waited = time.perf_counter()
            self.mark_consumed()

    def mark_consumed(self) -> None:
        """The step at hand has been used: a state saved from now on does not contain it."""
        if self._outstanding is not None:
            self._position, self._outstanding = self._outstanding, None

    @property
    def wait_share(self) -> float:
        """Share of the time in ``epoch`` that was spent waiting for data."""
        return self.wait_seconds / self.seconds if self.seconds else 0.0

    @property
    def skipped(self) -> int:
        """Samples that an epoch lacks because their shards are damaged, as far as is known."""
        return sum(self.order.samples[number] for number in self.damaged)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position of. Plain JSON, the same on every rank."""
        epoch, samples = self._position
        return {"epoch": epoch, "samples": samples, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, with any number of ranks and micro-batches.

        Raises:
            DataError: the state belongs to another order of samples, or is none.
        """
        expected = {"epoch", "samples", *self._identity}
        if state.keys() != expected:
            raise DataError(
                f"this is no state of a stream: it has {sorted(state)}, not {sorted(expected)}"
            )
        changed = [
            f"{name} was {state[name]!r} and is {value!r}"
            for name, value in self._identity.items()
            if state[name] != value
        ]
        if changed:
            raise DataError(
                f"the saved position is one in another order of samples: {'; '.join(changed)}; "
                f"use the same data and settings, or start the epoch anew without the state"
            )
        epoch, samples = state["epoch"], state["samples"]
        if (
            type(epoch) is not int
            or type(samples) is not int
            or epoch < 0
            or not 0 <= samples <= self.order.total
        ):
            raise DataError(
                f"no such position: epoch {epoch!r}, sample {samples!r} of {self.order.total}"
            )
        if samples % self.order.global_batch and samples != self.order.total:
            raise DataError(
                f"no such position: sample {samples} is inside a global batch of {self.order.global_batch}"
            )
        self._position, self._outstanding = (epoch, samples), None

    def ids(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> list[str]:
        """The source's names of samples given by their place in the split."""
        return [str(record["id"]) for record in self.records(indices)]

    def records(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> list[dict[str, Any]]:
        """What is stored as JSON with samples given by their place in the split, and ``text``."""
        index = np.asarray(indices, np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(
                f"{self.split} has {len(self)} samples, asked for {index.min()} to {index.max()}"
            )
        shards, rows = locate(self.reader.starts, index)
        found: list[dict[str, Any]] = [{}] * len(index)
        for at in np.argsort(shards, kind="stable").tolist():  # each shard is opened once
            found[at] = self.reader.record(int(shards[at]), int(rows[at]))
        return found

    def close(self) -> None:
        """Let go of threads and shards."""
        self.reader.close()

    def copy(self, **changes: Any) -> Stream:
        """A stream like this one, but for ``changes``, with nothing open and the same position."""
        return _restore(self._made_with | changes, self._position)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._made_with, self._position)

    def plan(self, epoch: int) -> Epoch:
        """The order of an epoch; the same on every rank."""
        return self.order.epoch(epoch, self._lengths)

    def parts(self, plan: Epoch, step: int) -> list[Arrays]:
        """The parts of one step for this rank; empty when all of its samples lie in skipped shards."""
        shard, row = plan.batch(step)
        if self.on_corrupt == "skip":
            usable = {int(number): self._usable(int(number)) for number in np.unique(shard)}
            kept = np.array([usable[number] for number in shard.tolist()], bool)
            shard, row = shard[kept], row[kept]
        if not len(shard):
            return []
        parts = self.ranks * self.micro_batches
        dealt = even_split(len(shard), parts)
        made = []
        for micro in range(self.micro_batches):
            mine = dealt[
                micro * self.ranks + self.rank
            ]  # ranks side by side: a sorted batch gives them like lengths
            filled = mine if mine.stop > mine.start else slice(0, 1)
            part = self.reader.collate(shard[filled], row[filled], self.pin_memory)
            weight = part.weight if filled is mine else torch.zeros(1)
            made.append(replace(part, loss_scale=parts / len(shard), weight=weight))
        return made

    @cached_property
    def _identity(self) -> dict[str, Any]:
        order = self.order
        settings = {
            name: getattr(order, name)
            for name in ("global_batch", "seed", "shuffle", "window", "bucket")
        }
        return {"split": self.split, "manifest": self.manifest_sha256, **settings}

    def _lengths(self, shard: int) -> np.ndarray:
        if self.on_corrupt == "fail" or self._usable(shard):
            return self.reader.lengths(shard)
        try:  # the order must not change when a shard is lost
            return bytes_of(
                read_index(self.store, self.reader.shards[shard], self.manifest.fields),
                self.reader.fields,
            )
        except DataError:
            return np.zeros(self.order.samples[shard], np.int64)

    def _usable(self, number: int) -> bool:
        if number in self.damaged:
            return False
        try:
            self.reader.shard(number)
        except DataError as error:
            self._damage(number, error)
            return False
        return True

    def _damage(self, number: int, error: DataError) -> None:
        if self.on_corrupt == "fail":
            raise error
        message = self.damaged[number] = str(error)
        share = self.skipped / len(self)
        log.warning(
            "skipping %d samples, %.3g of %s so far: %s",
            self.order.samples[number],
            share,
            self.split,
            message,
        )
        if share > self.max_skipped_fraction:
            raise DataError(
                f"{self.skipped} of {len(self)} {self.split} samples lie in damaged shards, more than the budget of "
                f"{self.max_skipped_fraction:g}; the last: {message}"
            )


class _Ahead:
    """The steps of an epoch from ``first``, made by a background thread while the caller works on the one before."""

    def __init__(self, stream: Stream, epoch: int, first: int):
        self.stream, self.plan = stream, stream.plan(epoch)
        stream.store.give_up(False)
        self.steps = iter(range(first, stream.order.steps))
        self.thread = ThreadPoolExecutor(1, "make-batch") if stream.prefetch else None
        self.waiting: deque[tuple[int, Future[list[Arrays]]]] = deque()
        self.opening: list[int] = []

    def __enter__(self) -> Iterator[tuple[int, list[Arrays]]]:
        return self._walk()

    def __exit__(self, kind: object, *error: object) -> None:
        if self.thread:
            self.thread.shutdown(wait=False, cancel_futures=True)
        if kind is not None:  # also when the loop was left early
            self.stream.reader.give_up()
        if self.thread:
            self.thread.shutdown(wait=True)

    def _walk(self) -> Iterator[tuple[int, list[Arrays]]]:
        if self.thread is None:
            for step in self.steps:
                yield step, self.stream.parts(self.plan, step)
            return
        for step in self.steps:
            self.waiting.append((step, self.thread.submit(self._make, step)))
            if len(self.waiting) > self.stream.prefetch:
                yield self._oldest()
        while self.waiting:
            yield self._oldest()

    def _oldest(self) -> tuple[int, list[Arrays]]:
        step, future = self.waiting.popleft()
        return step, future.result()

    def _make(self, step: int) -> list[Arrays]:
        if (needed := self.plan.needed(step)) != self.opening:
            self.stream.reader.ahead(needed)
            self.opening = needed
        return self.stream.parts(self.plan, step)


def _restore(made_with: dict[str, Any], position: tuple[int, int]) -> Stream:
    stream = Stream(**made_with)
    stream._position = position
    return stream
