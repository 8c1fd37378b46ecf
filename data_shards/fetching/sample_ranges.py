"""Single samples of a remote shard, where a rank needs few of them: their bytes in a file with holes.

The index says where samples lie, and has a checksum of each; the manifest vouches for the index. So
nothing but these bytes is fetched, and nothing is believed that was not compared. The file has no
name, and is gone when nobody reads it any more: the next epoch needs other samples.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from data_shards.fetching.http_answers import PUBLISH_AGAIN
from data_shards.shards.index_table import CRC, END, START, Index
from data_shards.shards.manifest import DataError

GAP = 256 << 10  # bytes between two samples that are fetched along, to save a request
SHARE = 0.25  # of a shard's samples; a rank that needs more fetches the whole


def worth_it(rows: np.ndarray, samples: int) -> bool:
    """Whether so few rows of a shard are fetched by themselves."""
    return len(rows) < SHARE * samples


def merged_ranges(index: Index, rows: np.ndarray) -> list[tuple[int, int]]:
    """The bytes in which these rows lie, as few ranges, in order."""
    ranges: list[tuple[int, int]] = []
    for start, end in index.table[np.sort(rows)][:, [START, END]].tolist():
        if ranges and start - ranges[-1][1] <= GAP:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges


def file_of_rows(
    folder: Path,
    index: Index,
    rows: np.ndarray,
    fetch_all: Callable[[Sequence[tuple[int, int]], int], None],
    where: str,
) -> IO[bytes]:
    """A file as long as the tar, with these rows where they belong, each as its checksum says.

    Args:
        folder: where the file takes its room.
        fetch_all: writes ranges of the tar to an open file, given its descriptor.
        where: the tar, for messages.
    """
    file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix="rows-")
    try:
        os.ftruncate(file.fileno(), index.tar_bytes)
        fetch_all(merged_ranges(index, rows), file.fileno())
        for row in rows.tolist():
            start, end, crc = index.table[row, [START, END, CRC]].tolist()
            if zlib.crc32(os.pread(file.fileno(), end - start, start)) != crc:
                raise DataError(
                    f"{where} is damaged: the checksum of sample {index.key(row)!r} in bytes "
                    f"{start} to {end} is wrong; {PUBLISH_AGAIN}"
                )
    except BaseException:
        file.close()
        raise
    return file
