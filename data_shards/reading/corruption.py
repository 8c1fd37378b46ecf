"""What is wrong with a shard whose size or checksum is not the manifest's: which sample, which bytes, what to do."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from mmap import mmap

from data_shards.shards.index_table import CRC, END, START, Index


def explain(where: str, index: Index, what: str, held: mmap | None = None, size: int = 0) -> str:
    """One message for a damaged shard. ``held`` is its content; without it, ``size`` is what is wrong.

    A cut is found from the size alone; other damage by the checksum that the index holds of every sample.
    """
    rows = (
        list(damaged_rows(index, held))
        if held is not None
        else [int((index.table[:, END] <= size).sum())]
    )
    if rows and rows[0] < len(index):
        start, end = (int(index.table[rows[0], column]) for column in (START, END))
        place = f"sample {index.key(rows[0])!r} in bytes {start} to {end}"
        if held is not None:
            place += f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        else:
            place = f"the first sample lost is {place[7:]}"
    else:
        place = f"all {len(index)} samples are whole; the damage is outside them, from byte {index.table[-1, END]}"
    return f"{where} is damaged: {what}; {place}; {advice(where)}"


def advice(where: str) -> str:
    folder = os.path.dirname(where) or "."
    return f"list all damage with: python -m data_shards.verify {folder} --deep; then restore the file or convert again"


def damaged_rows(index: Index, held: mmap) -> Iterator[int]:
    """Rows of the samples that are not what they were when the index was made."""
    whole = memoryview(held)
    for row, (start, end, crc) in enumerate(index.table[:, [START, END, CRC]].tolist()):
        if zlib.crc32(whole[start:end]) != crc:
            yield row
