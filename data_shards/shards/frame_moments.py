"""Mean and spread of frames, joined exactly piece by piece (Chan, Golub and LeVeque, 1983)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Of ``count`` frames, per feature. Plain lists, which JSON keeps without loss."""

    count: int
    mean: list[float]
    squares: list[float]  # sum of squared deviations from the mean

    @staticmethod
    def of(frames: np.ndarray) -> Moments:
        """Of frames (T, D), in float64. T must be at least 1."""
        wide = frames.astype(np.float64)
        mean = wide.mean(axis=0)
        squares = ((wide - mean) ** 2).sum(axis=0)
        return Moments(len(wide), mean.tolist(), squares.tolist())

    def join(self, other: Moments) -> Moments:
        """Of the frames of both. The last bit depends on the order: join in file order."""
        count = self.count + other.count
        mean = np.array(self.mean)
        difference = np.array(other.mean) - mean
        squares = np.array(self.squares) + np.array(other.squares)
        between = difference**2 * (self.count * other.count / count)
        joined_mean = mean + difference * (other.count / count)
        return Moments(count, joined_mean.tolist(), (squares + between).tolist())

    def std(self) -> list[float]:
        """The standard deviation of each feature."""
        return np.sqrt(np.array(self.squares) / self.count).tolist()


def add_frames(moments: dict[str, Moments], field: str, frames: np.ndarray) -> None:
    """Join the frames (T, D) of one more sample to those of ``field``."""
    more = Moments.of(frames)
    moments[field] = moments[field].join(more) if field in moments else more


def mean_and_std(
    per_shard: Iterable[dict[str, Moments]],
) -> dict[str, tuple[list[float], list[float]]]:
    """Field -> mean and deviation of the frames of all shards, given in file order."""
    by_field: dict[str, list[Moments]] = {}
    for shard_moments in per_shard:
        for field, moments in shard_moments.items():
            by_field.setdefault(field, []).append(moments)
    joined = {field: reduce(Moments.join, parts) for field, parts in by_field.items()}
    return {field: (moments.mean, moments.std()) for field, moments in joined.items()}
