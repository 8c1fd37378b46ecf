"""The declared scores with a weight for each sample, for many sets of weights at once.

A bootstrap draws samples with replacement: sample i occurs w_i times. Every score here is a
function of a few sums over samples, so the scores of all draws are some products of the (draws, N)
weights with (N,) vectors. With all weights 1 the values are those of ``regression.scores`` and
``classification.scores``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from core.metrics.regression import sims_class

Array = NDArray[np.float64]
Contribution = tuple[NDArray, NDArray, NDArray]  # (N,) answers, truth, whether a sample counts


def weighted_score(
    name: str, prediction: Array, label: Array, style: str, weights: Array
) -> Array | None:
    """(draws,) values of a score; None where this file does not know it.

    Args:
        name: of a declared metric, without a prefix.
        prediction: (N,) scores, or class numbers where ``style`` is "classes".
        label: (N,) likewise.
        weights: (draws, N), none negative, not all 0 in a draw.
    """
    if style == "classes":
        everything = np.ones(len(label), bool)
        return _of_classes(name, (prediction, label, everything), weights)
    if style == "sims":
        prediction, label = prediction.clip(-1, 1), label.clip(-1, 1)
    if name in _BY_SUMS:
        return _BY_SUMS[name](prediction, label, weights)
    classes = _classes(name, prediction, label, style)
    return None if classes is None else _of_classes(name, classes, weights)


def _mean(values: Array, weights: Array) -> Array:
    return weights @ values / weights.sum(1)


def _mean_absolute_error(prediction: Array, label: Array, weights: Array) -> Array:
    return _mean(np.abs(prediction - label), weights)


def _root_mean_square(prediction: Array, label: Array, weights: Array) -> Array:
    return np.sqrt(_mean((prediction - label) ** 2, weights))


def _moments(prediction: Array, label: Array, weights: Array) -> tuple[Array, Array, Array, Array]:
    """Difference of the means, two variances and the covariance, (draws,) each."""
    x = prediction - prediction.mean()  # near 0, so that squares do not cancel
    y = label - label.mean()
    mean_x, mean_y = _mean(x, weights), _mean(y, weights)
    variance_x = _mean(x * x, weights) - mean_x**2
    variance_y = _mean(y * y, weights) - mean_y**2
    covariance = _mean(x * y, weights) - mean_x * mean_y
    apart = mean_x - mean_y + (prediction.mean() - label.mean())
    return apart, variance_x.clip(0), variance_y.clip(0), covariance


def _correlation(prediction: Array, label: Array, weights: Array) -> Array:
    _, variance_x, variance_y, covariance = _moments(prediction, label, weights)
    product = np.sqrt(variance_x * variance_y)
    return np.divide(covariance, product, out=np.zeros_like(product), where=product > 1e-15)


def _concordance(prediction: Array, label: Array, weights: Array) -> Array:
    apart, variance_x, variance_y, covariance = _moments(prediction, label, weights)
    total = variance_x + variance_y + apart**2
    return np.divide(2 * covariance, total, out=np.ones_like(total), where=total > 0)


_BY_SUMS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "MAE": _mean_absolute_error,
    "RMSE": _root_mean_square,
    "Corr": _correlation,
    "CCC": _concordance,
}


def _classes(name: str, prediction: Array, label: Array, style: str) -> Contribution | None:
    """What a score of classes compares, as ``regression`` has it."""
    everything = np.ones(len(label), bool)
    if style == "sims" and name.startswith("Mult_acc_"):
        count = int(name.rpartition("_")[2])
        return sims_class(prediction, count), sims_class(label, count), everything
    if style == "sims" and name == "F1_score":
        return sims_class(prediction, 2), sims_class(label, 2), everything
    if name.startswith("Has0_"):
        return prediction >= 0, label >= 0, everything
    if name.startswith("Non0_"):
        return prediction > 0, label > 0, label != 0
    edges = {("mosi", "Mult_acc_7"): (-3, 3), ("mosi", "Mult_acc_5"): (-2, 2)}
    edges |= {("mmmo", "Mult_acc_5"): (1, 5)}
    if (style, name) not in edges:
        return None
    low, high = edges[style, name]
    return np.round(prediction.clip(low, high)), np.round(label.clip(low, high)), everything


def _of_classes(name: str, classes: Contribution, weights: Array) -> Array | None:
    answer, truth, counts = classes
    weights = weights * counts
    total = weights.sum(1)
    if name == "Unweighted_acc":
        return _mean_recall(answer, truth, weights)
    if "acc" in name.lower():
        right = weights @ (answer == truth).astype(np.float64)
        return np.divide(right, total, out=np.zeros_like(total), where=total > 0)
    if "F1" not in name:
        return None
    f1s, shares = [], []
    for one in np.union1d(answer[counts], truth[counts]):
        is_answer = (answer == one).astype(np.float64)
        is_truth = (truth == one).astype(np.float64)
        both = weights @ (is_answer * is_truth)
        either = weights @ is_answer + weights @ is_truth
        f1s.append(np.divide(2 * both, either, out=np.zeros_like(either), where=either > 0))
        shares.append(weights @ is_truth)
    if not f1s:
        return np.zeros(len(weights))
    if name.startswith("Macro"):
        return np.stack(f1s).mean(0)
    weighted = np.sum(np.stack(f1s) * np.stack(shares), 0)
    return np.divide(weighted, total, out=np.zeros_like(total), where=total > 0)


def _mean_recall(answer: NDArray, truth: NDArray, weights: Array) -> Array:
    """(draws,) mean, over the classes that a draw has samples of, of the shares that are found."""
    found = np.zeros(len(weights))
    num_classes = np.zeros(len(weights))
    for one in np.unique(truth):
        is_truth = (truth == one).astype(np.float64)
        samples = weights @ is_truth
        right = weights @ (is_truth * (answer == one))
        found += np.divide(right, samples, out=np.zeros_like(samples), where=samples > 0)
        num_classes += samples > 0
    return found / num_classes
