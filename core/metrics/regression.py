"""Scores of predicted sentiment against the truth, in the conventions under which the field's tables are printed.

Four styles: ``mosi`` (MOSI, MOSEI: labels in [-3, 3]), ``sims`` (SIMS, SIMSv2: labels in [-1, 1]), ``phq``
(depression severity, AVEC 2019: the concordance correlation) and ``mmmo`` (opinions of films: labels in [1, 5]).
All are functions of whole arrays, in sample space: no batch means, nothing rounded. Accuracies and F1 are fractions;
the papers' tables print them times 100.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import f1_score

Array = NDArray[np.float64]

# The bins of SIMS are (lower, upper], compared in float32: that is what labels and predictions are, and a float32
# 0.1 seen as float64 would lie above the edge 0.1. A score of exactly 0 counts as negative here, unlike in MOSI.
_SIMS_EDGES = {2: [0.0], 3: [-0.1, 0.1], 5: [-0.7, -0.1, 0.1, 0.7]}

_COLLAPSED = 0.02  # of the labels' standard deviation


def scores(prediction: ArrayLike, label: ArrayLike, style: str) -> dict[str, float]:
    """Metric name -> value for N predictions of N labels.

    Args:
        style: "mosi": MAE, Corr, Mult_acc_7, Mult_acc_5, Has0_acc_2, Has0_F1, Non0_acc_2, Non0_F1;
            "sims": MAE, Corr, Mult_acc_2, Mult_acc_3, Mult_acc_5, F1_score; "phq": MAE, RMSE, CCC, Corr;
            "mmmo": MAE, RMSE, Corr, Mult_acc_5 (rounded half to even into 1..5).

    What has no value is 0: the correlation with a constant, and Non0 metrics where every label is zero.
    """
    if style not in _STYLES:
        raise ValueError(f"unknown metric style {style!r}; there are: {', '.join(sorted(_STYLES))}")
    return _STYLES[style](*_checked(prediction, label))


def constant_baselines(label: ArrayLike, style: str) -> dict[str, dict[str, float]]:
    """What answering the same for every sample would score: name of the constant -> its scores."""
    label = np.asarray(label, dtype=np.float64).reshape(-1)
    constants = {"median": float(np.median(label))}
    if style in _SIGNED:
        constants |= {"negative": -1.0, "positive": 1.0}
    else:
        constants |= {"mean": float(label.mean())}
    return {
        name: scores(np.full_like(label, value), label, style) for name, value in constants.items()
    }


def collapsed(prediction: ArrayLike, label: ArrayLike, style: str) -> str | None:
    """A warning when the model answers (nearly) the same for every sample, or only on one side of zero; else None."""
    prediction, label = _checked(prediction, label)
    spread, wanted = float(prediction.std()), float(label.std())
    if wanted == 0:
        return None  # one sample, or labels without differences: a constant answer is right
    if spread <= _COLLAPSED * wanted:
        what = f"predictions hardly differ (standard deviation {spread:.3g}, of the labels {wanted:.3g})"
    elif style in _SIGNED and len({*(prediction > 0)}) == 1 and len({*(label > 0)}) == 2:
        what = f"all {len(prediction)} predictions are {'positive' if prediction[0] > 0 else 'negative or zero'}"
    else:
        return None
    beside = "; ".join(
        f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in values.items())
        for name, values in constant_baselines(label, style).items()
    )
    return f"the model has collapsed: {what}. Constant answers score: {beside}"


def correlation(prediction: Array, label: Array) -> float:
    """Pearson's; 0 where either is constant."""
    if np.ptp(prediction) == 0 or np.ptp(label) == 0:
        return 0.0
    return float(np.corrcoef(prediction, label)[0, 1])


def concordance(prediction: Array, label: Array) -> float:
    """Lin's concordance correlation, 2 cov / (var + var + squared difference of means); 1 where both are the same
    constant."""
    distance = prediction.var() + label.var() + (prediction.mean() - label.mean()) ** 2
    covariance = ((prediction - prediction.mean()) * (label - label.mean())).mean()
    return float(2 * covariance / distance) if distance > 0 else 1.0


def _mosi(prediction: Array, label: Array) -> dict[str, float]:
    nonzero = label != 0
    return {
        "MAE": float(np.abs(prediction - label).mean()),
        "Corr": correlation(prediction, label),
        "Mult_acc_7": _rounded_accuracy(prediction, label, 3),
        "Mult_acc_5": _rounded_accuracy(prediction, label, 2),
        "Has0_acc_2": _accuracy(prediction >= 0, label >= 0),
        "Has0_F1": _weighted_f1(prediction >= 0, label >= 0),
        "Non0_acc_2": _accuracy(prediction[nonzero] > 0, label[nonzero] > 0),
        "Non0_F1": _weighted_f1(prediction[nonzero] > 0, label[nonzero] > 0),
    }


def _sims(prediction: Array, label: Array) -> dict[str, float]:
    prediction, label = (
        prediction.clip(-1, 1),
        label.clip(-1, 1),
    )  # also for MAE and Corr, as everybody's tables
    classes = {
        count: [
            np.digitize(a.astype(np.float32), np.array(edges, np.float32), right=True)
            for a in (prediction, label)
        ]
        for count, edges in _SIMS_EDGES.items()
    }
    return {
        "MAE": float(np.abs(prediction - label).mean()),
        "Corr": correlation(prediction, label),
        **{f"Mult_acc_{count}": _accuracy(*pair) for count, pair in classes.items()},
        "F1_score": _weighted_f1(*classes[2]),
    }


def _phq(prediction: Array, label: Array) -> dict[str, float]:
    error = prediction - label
    return {
        "MAE": float(np.abs(error).mean()),
        "RMSE": float(np.sqrt((error**2).mean())),
        "CCC": concordance(prediction, label),
        "Corr": correlation(prediction, label),
    }


def _mmmo(prediction: Array, label: Array) -> dict[str, float]:
    found = _phq(prediction, label)
    rounded = [np.round(values.clip(1, 5)) for values in (prediction, label)]
    return {name: found[name] for name in ("MAE", "RMSE", "Corr")} | {
        "Mult_acc_5": _accuracy(*rounded)
    }


_SIGNED = ("mosi", "sims")  # styles in which zero divides the classes
_STYLES: dict[str, Callable[[Array, Array], dict[str, float]]] = {
    "mosi": _mosi,
    "sims": _sims,
    "phq": _phq,
    "mmmo": _mmmo,
}


def _rounded_accuracy(prediction: Array, label: Array, limit: int) -> float:
    """Both clipped to [-limit, limit] and rounded half to even: that is ``np.round``, not the schoolbook's rule."""
    return _accuracy(np.round(prediction.clip(-limit, limit)), np.round(label.clip(-limit, limit)))


def _accuracy(prediction: NDArray, label: NDArray) -> float:
    return float((prediction == label).mean()) if len(label) else 0.0


def _weighted_f1(prediction: NDArray, label: NDArray) -> float:
    """F1 per class, weighted by the class's share of the *truth*."""
    return (
        float(f1_score(label, prediction, average="weighted", zero_division=0))
        if len(label)
        else 0.0
    )


def _checked(prediction: ArrayLike, label: ArrayLike) -> tuple[Array, Array]:
    pair = tuple(np.asarray(values, dtype=np.float64).reshape(-1) for values in (prediction, label))
    for name, values in zip(("prediction", "label"), pair, strict=True):
        if not np.isfinite(values).all():
            first = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(
                f"{name} {first} of {len(values)} is {values[first]}; scores need finite numbers"
            )
    if len(pair[0]) != len(pair[1]) or not len(pair[0]):
        raise ValueError(
            f"scores need as many predictions as labels, got {len(pair[0])} and {len(pair[1])}"
        )
    return pair[0], pair[1]
