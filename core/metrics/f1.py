"""F1 of predicted classes, averaged over them."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def f1(
    truth: NDArray,
    predicted: NDArray,
    average: Literal["macro", "weighted"],
    classes: NDArray | None = None,
) -> float:
    """The mean over classes of 2 hits / (true + predicted), 0 for a class that is neither.

    Args:
        truth: (N,) of anything that can be compared; ``predicted`` alike.
        average: the plain mean, or weighted by how often the class is true.
        classes: (C,) over which the mean is; those that occur by default.
    """
    if classes is None:
        classes = np.union1d(truth, predicted)
    is_true = truth[:, None] == classes  # (N, C)
    is_predicted = predicted[:, None] == classes
    hits = (is_true & is_predicted).sum(0)
    support = is_true.sum(0)
    total = support + is_predicted.sum(0)
    by_class = np.divide(2.0 * hits, total, out=np.zeros(len(classes)), where=total > 0)
    if average == "macro":
        return float(np.average(by_class))
    return float(np.average(by_class, weights=support))
