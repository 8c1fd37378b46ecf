"""Corrupt shards: what is wrong with one, where and what to do; and which ones an epoch skips."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator
from mmap import mmap

import numpy as np

from core.command import Refused
from data_shards.shards.index_table import CRC, END, START, Index
from data_shards.shards.manifest import DataError

log = logging.getLogger(__name__)


def describe_wrong_size(where: str, index: Index, size: int, expected: int) -> str:
    """One message for a tar of another size than the manifest's: the first sample that is lost."""
    whole_samples = int((index.table[:, END] <= size).sum())
    if whole_samples < len(index):
        location = f"the first sample lost is {_sample_range(index, whole_samples)}"
    else:
        location = _outside_samples(index)
    return f"{where} is damaged: it has {size} bytes, not {expected}; {location}; {advice(where)}"


def describe_wrong_checksum(where: str, index: Index, content: mmap) -> str:
    """One message for a tar of the right size and a wrong checksum: the samples whose own
    checksums, which the index has, are wrong."""
    rows = list(corrupt_rows(index, content))
    if not rows:
        location = _outside_samples(index)
    else:
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        location = f"sample {_sample_range(index, rows[0])}{more}"
    return f"{where} is damaged: its checksum is wrong; {location}; {advice(where)}"


def corrupt_rows(index: Index, content: mmap) -> Iterator[int]:
    """Rows of the samples that are not what they were when the index was made."""
    view = memoryview(content)
    columns = index.table[:, [START, END, CRC]].tolist()
    for row, (start, end, crc) in enumerate(columns):
        if zlib.crc32(view[start:end]) != crc:
            yield row


def advice(where: str) -> str:
    """What to do about a corrupt file, as a command."""
    folder = os.path.dirname(where) or "."
    return (
        f"list all damage with: python -m data_shards.verify {folder} --deep; "
        f"then restore the file or convert again"
    )


def _sample_range(index: Index, row: int) -> str:
    start, end = index.table[row, [START, END]].tolist()
    return f"{index.key(row)!r} in bytes {start} to {end}"


def _outside_samples(index: Index) -> str:
    end = index.table[-1, END]
    return f"all {len(index)} samples are whole; the damage is outside them, from byte {end}"


class SkippedShards:
    """The corrupt shards of a split that are left out, up to a share of its samples.

    Args:
        samples: (S,) number of samples in each shard.
        max_fraction: the share of all samples that may be left out before it is an error.
    """

    def __init__(self, split: str, samples: np.ndarray, max_fraction: float):
        self.split = split
        self.samples = samples
        self.max_fraction = max_fraction
        self.reasons: dict[int, str] = {}  # shard number -> what is wrong with it

    def __contains__(self, number: int) -> bool:
        return number in self.reasons

    @property
    def num_samples(self) -> int:
        """Samples left out, as far as is known."""
        return sum(int(self.samples[number]) for number in self.reasons)

    def add(self, number: int, error: Refused) -> None:
        """Leave this shard out from now on.

        Raises:
            DataError: with it, more than ``max_fraction`` of the samples would be left out.
        """
        reason = self.reasons[number] = str(error)
        total = int(self.samples.sum())
        fraction = self.num_samples / total
        log.warning(
            "skipping %d samples, %.3g of %s so far: %s",
            self.samples[number],
            fraction,
            self.split,
            reason,
        )
        if fraction > self.max_fraction:
            raise DataError(
                f"{self.num_samples} of {total} {self.split} samples lie in damaged shards, more "
                "than the budget of "
                f"{self.max_fraction:g}; the last: {reason}"
            )
