"""Mean and spread of frames, joined exactly piece by piece (Chan, Golub and LeVeque, 1983)."""

from __future__ import annotations

from dataclasses import dataclass

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
