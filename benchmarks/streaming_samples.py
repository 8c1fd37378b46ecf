"""The samples that the readers of ``streaming.py`` are compared on, and how peers make batches of
them.

Needs NumPy only, and torch for batches, so that any interpreter with a peer can import it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

BATCH = 64
# field -> the shape of its shortest and its longest sample
SHAPES = {
    "mosi": {
        "text": ((3, 8), (3, 50)),
        "audio": ((40, 5), (375, 5)),
        "vision": ((50, 20), (500, 20)),
    },
    "sims": {
        "text": ((3, 39), (3, 39)),
        "audio": ((400, 33), (400, 33)),
        "vision": ((55, 709), (55, 709)),
    },
    "scale": {
        "text": ((3, 4), (3, 9)),
        "audio": ((4, 5), (9, 5)),
        "vision": ((4, 20), (9, 20)),
    },
}
TIME_AXIS = {"text": 1, "audio": 0, "vision": 0}
Sample = dict[str, np.ndarray]


def sample(shape: str, index: int) -> Sample:
    """The same for every reader."""
    rng = np.random.default_rng(index)
    arrays = {"label": np.array([rng.uniform(-3, 3)], np.float32)}
    for field, (shortest, longest) in SHAPES[shape].items():
        size = []
        for low, high in zip(shortest, longest):  # noqa: B905
            size.append(int(rng.integers(low, high + 1)))
        if field == "text":
            arrays[field] = rng.integers(0, 30_000, size, np.int32)
        else:
            arrays[field] = rng.standard_normal(size, np.float32)
    return arrays


def samples(shape: str, count: int) -> Iterator[Sample]:
    for index in range(count):
        yield sample(shape, index)


def pad(rows: list[Any]) -> dict[str, Any]:
    """What every peer collates with: one zeroed array per field, each sample copied in, as
    tensors."""
    import torch

    batch = {}
    for field in ("label", "text", "audio", "vision"):
        arrays = [np.asarray(row[field] if field in row else row[f"{field}.npy"]) for row in rows]
        shape = list(arrays[0].shape)
        if field in TIME_AXIS:
            axis = TIME_AXIS[field]
            shape[axis] = max(array.shape[axis] for array in arrays)
        padded = np.zeros((len(arrays), *shape), arrays[0].dtype)
        for row, array in enumerate(arrays):
            padded[(row, *map(slice, array.shape))] = array
        batch[field] = torch.from_numpy(padded)
    return batch
