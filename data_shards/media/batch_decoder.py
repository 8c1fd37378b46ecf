"""The media of a batch, decoded by threads: from bytes to numbers, padded like any other array.

What comes out depends on the members alone, not on how many threads there are. A broken member is
an error that names it, or, with ``on_broken="skip"``, a modality that its sample lacks: that every
rank sees alike without asking another, since the sample stays in its batch.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data_shards.extract.media import Unreadable
from data_shards.media.media_kinds import Media
from data_shards.media.member_codec import MEMBER_LIMITS, decode_member
from data_shards.reading.reader import Arrays, Reader
from data_shards.reading.sampler import Rows, locate
from data_shards.reading.storage import Store
from data_shards.shards.manifest import DataError, Field, Shard

log = logging.getLogger(__name__)

Decoded = np.ndarray | None  # None: the sample has no such member, or a broken one is skipped


@dataclass(frozen=True)
class Decoding:
    """How members are decoded."""

    # skip: a member that cannot be decoded is a modality that its sample lacks
    on_broken: Literal["fail", "skip"] = "fail"
    max_fraction: float = 0.0  # with skip: the share of the split's samples that may have one
    threads: int = 0  # members decoded at the same time; 0: as many as this process has cores
    seconds: float = MEMBER_LIMITS.seconds  # a longer member counts as broken


class MediaReader(Reader):
    """A ``Reader`` whose batches hold numbers in place of the bytes of media: sound (B, S, 1)
    float32, pictures (B, T, 3 * side * side) uint8, and their lengths.

    Threads are made with the first batch that has media.
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
        decoding: Decoding,
    ):
        super().__init__(store, shards, known, chosen, keep=keep, threads=threads)
        self.media = {name: field.media for name, field in self.fields.items() if field.media}
        self.broken: dict[int, str] = {}  # number of a sample in its split -> what is wrong
        self.decode_seconds = 0.0  # of the processor, over all threads
        self._clock = Lock()
        self._decoding = decoding
        self._limits = replace(MEMBER_LIMITS, seconds=decoding.seconds)
        self._pool: ThreadPoolExecutor | None = None

    def collate(self, rows: Rows, pin: bool = False) -> Arrays:
        """The samples of B rows as one padded batch, media decoded.

        Raises:
            DataError: a member is broken, or with "skip" more samples than may have one.
        """
        batch = super().collate(rows, pin)
        if not self.media:
            return batch
        arrays, lengths = dict(batch.arrays), dict(batch.lengths)
        for name, futures in self._begin(batch).items():
            decoded = [future.result() for future in futures]
            arrays[name], lengths[name] = padded(decoded, self.media[name], pin)
        self._check_budget()
        return replace(batch, arrays=arrays, lengths=lengths)

    def close(self) -> None:
        """Let go of every shard and thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        super().close()

    def _begin(self, batch: Arrays) -> Mapping[str, list[Future[Decoded]]]:
        """Have all members of a batch decoded; field -> what becomes of each sample."""
        if self._pool is None:
            threads = self._decoding.threads or len(os.sched_getaffinity(0))
            self._pool = ThreadPoolExecutor(threads, "decode")
        numbers = batch.index.tolist()
        begun: dict[str, list[Future[Decoded]]] = {name: [] for name in self.media}
        for name in self.media:
            rows = batch.arrays[name].numpy()  # (B, N) uint8
            for row, size in enumerate(batch.lengths[name].tolist()):
                body = rows[row, :size].tobytes()
                begun[name].append(self._pool.submit(self._decode, numbers[row], name, body))
        return begun

    def _decode(self, number: int, name: str, body: bytes) -> Decoded:
        """The numbers of one member, in a thread."""
        if not body:
            return None
        begun = time.thread_time()
        try:
            return decode_member(body, self.media[name], self._limits)
        except Unreadable as reason:
            problem = f"{self._place(number)}: {name} cannot be decoded: {reason}"
        finally:
            with self._clock:
                self.decode_seconds += time.thread_time() - begun
        if self._decoding.on_broken == "fail":
            raise DataError(
                f"{problem}; write the data anew without it, or leave such members out with "
                "on_corrupt=skip"
            )
        if number not in self.broken:
            log.warning("%s; the sample is used without it", problem)
        self.broken[number] = problem
        return None

    def _place(self, number: int) -> str:
        """Shard and key of a sample, given by its number in the split."""
        rows = locate(self.starts, np.array([number]))
        return self.place(int(rows.shard[0]), int(rows.row[0]))

    def _check_budget(self) -> None:
        """DataError once more samples have a broken member than the budget allows."""
        if not self.broken:
            return
        samples = sum(shard.samples for shard in self.shards)
        if len(self.broken) > self._decoding.max_fraction * samples:
            last = next(reversed(self.broken.values()))
            raise DataError(
                f"{len(self.broken)} of {samples} samples have members that cannot be decoded, "
                f"more than the budget of {self._decoding.max_fraction:g}; the last: {last}"
            )


def padded(decoded: Sequence[Decoded], media: Media, pin: bool) -> tuple[Tensor, Tensor]:
    """(B, T, width) with zeros behind each sample, and the lengths (B,) int64."""
    lengths = [0 if array is None else len(array) for array in decoded]
    dtype = torch.float32 if media.kind == "sound" else torch.uint8
    shape = (len(decoded), max([1, *lengths]), media.width)
    batch = torch.zeros(shape, dtype=dtype, pin_memory=pin)
    for row, array in enumerate(decoded):
        if array is not None:
            batch[row, : len(array)] = torch.from_numpy(np.require(array, requirements="W"))
    return batch, torch.tensor(lengths, dtype=torch.int64)
