"""What the labels of a data set mean, as far as their values say it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from data_shards.shards.manifest import DataError, Labels

MOST_PARTS = 60  # of one: no annotation is finer, means of 3, 4 or 5 raters included
_TOLERANCE = 1e-3  # of a step: float32 labels were rounded


def known_resolution(labels: Labels, values: Iterable[float]) -> Labels:
    """``labels`` with a step that every value is a multiple of: its own, or a whole part of it, or
    none.

    One in seventeen MOSI labels is off its grid of 1/5, because a few clips had more or fewer than
    five annotators; all are multiples of 1/60. Equal labels are only equal for sure on such a grid.
    """
    finite_values = np.array(list(values), np.float64)
    finite_values = finite_values[np.isfinite(finite_values)]
    if labels.resolution is None or not len(finite_values):
        return labels
    for divisor in range(1, 21):
        steps = finite_values / labels.resolution * divisor
        if _are_whole(steps):
            return replace(labels, resolution=labels.resolution / divisor)
    return replace(labels, resolution=None)


def measured_scores(values: Iterable[float]) -> Labels:
    """The range of scores, and the largest 1, 1/2, 1/3, ... that all are multiples of, if any is.

    Raises:
        DataError: all labels are equal.
    """
    scores = np.array(sorted(values), np.float64)
    low, high = float(scores[0]), float(scores[-1])
    if low == high:
        raise DataError(
            f"every label is {low:g}, so there is no range to learn; correct the labels, "
            "or state it with --labels LOW:HIGH[:STEP]"
        )
    for parts in range(1, MOST_PARTS + 1):
        if _are_whole(scores * parts):
            return Labels(low=low, high=high, resolution=1 / parts)
    return Labels(low=low, high=high)


def counted_classes(numbers: Iterable[int], where: str) -> Labels:
    """Classes that have no names but their numbers.

    Raises:
        DataError: a number below the largest that no sample has.
    """
    found = set(numbers)
    count = max(found) + 1
    if len(found) < count:
        without = next(number for number in range(count) if number not in found)
        raise DataError(
            f"{where}: classes go up to {count - 1}, but no sample is of class {without}; number "
            "them from 0 without a gap, or name all of them with --classes A,B,..."
        )
    return named_classes(map(str, range(count)))


def named_classes(names: Iterable[str]) -> Labels:
    """Classes by name, in the order of their numbers."""
    listed = tuple(names)
    return Labels(kind="classes", low=0.0, high=float(max(1, len(listed) - 1)), names=listed)


def _are_whole(steps: np.ndarray) -> bool:
    return bool((np.abs(steps - np.round(steps)) < _TOLERANCE).all())
