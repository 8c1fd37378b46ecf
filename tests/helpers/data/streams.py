"""What streams give, for tests: the samples of steps, on one rank or all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_shards.reading.reader import Arrays
from data_shards.stream import Stream

SIZES = (5, 1, 7, 3, 4)


def places(parts: Sequence[Arrays]) -> list[int]:
    """The samples of one rank's step, without rows that only fill a part."""
    return [
        int(i)
        for part in parts
        for i, weight in zip(part.index, part.weight, strict=True)
        if weight
    ]


def global_batches(folder: Path, epoch: int = 0, ranks: int = 1, **options) -> list[list[int]]:
    """The samples of each step over all ranks, sorted; ranks must agree on their number."""
    streams = [Stream(folder, "train", rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    steps = [[places(parts) for parts in stream.epoch(epoch)] for stream in streams]
    for stream in streams:
        stream.close()
    return [sorted(sum(step, [])) for step in zip(*steps, strict=True)]
