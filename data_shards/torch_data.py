"""The stream in other people's loops: as data sets for ``torch.utils.data.DataLoader``. See
docs/streaming.md.

Our trainer does not use this: with samples of some kilobytes worker processes cost more than they
bring, because batches travel between processes; the stream's own thread does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from data_shards.reading.reader import Arrays
from data_shards.reading.sampler import locate
from data_shards.stream import Stream


class StepDataset(IterableDataset):
    """The steps of one epoch from the stream's position; give it to a DataLoader with
    ``batch_size=None``.

    Workers take steps in turn, so that the loader hands them over in order, whatever their number.
    A step whose samples all lie in skipped shards is an empty list. The stream's position does not
    move: ``loader`` sees to that.
    """

    def __init__(self, stream: Stream, epoch: int):
        self.stream = stream
        self.epoch = epoch
        self.first = stream.next_step(epoch)

    def __iter__(self) -> Iterator[list[Arrays]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        # A copy: a forked stream would share locks with threads that are not in this process.
        stream = self.stream.copy(prefetch=0)
        try:
            order = stream.epoch_order(self.epoch)
            for step in range(self.first + number, stream.steps(self.epoch), workers):
                yield stream.make_step(order, step)
        finally:
            stream.close()

    def __len__(self) -> int:
        return self.stream.steps(self.epoch) - self.first


def loader(
    stream: Stream, epoch: int, workers: int, pin_memory: bool = False
) -> Iterator[list[Arrays]]:
    """What ``stream.epoch(epoch)`` gives, made by worker processes; the position is kept in the
    same way."""
    steps = StepDataset(stream, epoch)
    made = DataLoader(steps, batch_size=None, num_workers=workers, pin_memory=pin_memory)
    return stream.track(epoch, enumerate(made, steps.first))


class SampleDataset(Dataset):
    """The samples of one split by index, as dicts of tensors; a field that a sample lacks is not
    there."""

    def __init__(self, stream: Stream):
        self.stream = stream
        # The process that last read, and the stream that it opened for itself.
        self._opened: tuple[int, Stream] | None = None

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"{self.stream.split} has {len(self)} samples, there is no sample {index}"
            )
        reader = self._stream_of_this_process().reader
        rows = locate(reader.starts, np.array([index % len(self)]))
        arrays = reader.views(int(rows.shard[0]), int(rows.row[0]))
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def _stream_of_this_process(self) -> Stream:
        process = os.getpid()
        if self._opened is None or self._opened[0] != process:
            self._opened = (process, self.stream.copy(prefetch=0))
        return self._opened[1]

    def __getstate__(self) -> dict[str, object]:
        return {"stream": self.stream, "_opened": None}
