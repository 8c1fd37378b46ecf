"""Scores of predicted sentiment against the truth, in the conventions under which the field's
tables are printed.

Four styles: ``mosi`` (MOSI, MOSEI: labels in [-3, 3]), ``sims`` (SIMS, SIMSv2: labels in [-1, 1]),
``phq`` (depression severity, AVEC 2019: the concordance correlation) and ``mmmo`` (opinions of
films: labels in [1, 5]). All are functions of whole arrays, in sample space: no batch means,
nothing rounded. Accuracies and F1 are fractions; the papers' tables print them times 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.command import Refused
from core.metrics.declared import score_text
from core.metrics.f1 import f1

Array = NDArray[np.float64]

# The bins of SIMS are (lower, upper], compared in float32: that is what labels and predictions are,
# and a float32 0.1 seen as float64 would lie above the edge 0.1. A score of exactly 0 counts as
# negative here, unlike in MOSI.
_SIMS_EDGES = {2: [0.0], 3: [-0.1, 0.1], 5: [-0.7, -0.1, 0.1, 0.7]}

_COLLAPSED = 0.02  # of the labels' standard deviation


def scores(prediction: ArrayLike, label: ArrayLike, style: str) -> dict[str, float]:
    """Metric name -> value for N predictions of N labels.

    Args:
        style: "mosi": MAE, Corr, Mult_acc_7, Mult_acc_5, Has0_acc_2, Has0_F1, Non0_acc_2, Non0_F1;
            "sims": MAE, Corr, Mult_acc_2, Mult_acc_3, Mult_acc_5, F1_score; "phq": MAE, RMSE, CCC,
            Corr; "mmmo": MAE, RMSE, Corr, Mult_acc_5 (rounded half to even into 1..5).

    What has no value is 0: the correlation with a constant, and Non0 metrics where every label is
    zero.
    """
    if style not in _STYLES:
        raise ValueError(f"unknown metric style {style!r}; there are: {', '.join(sorted(_STYLES))}")
    prediction, label = _checked(prediction, label)
    return _STYLES[style](prediction, label)


def constant_baselines(label: ArrayLike, style: str) -> dict[str, dict[str, float]]:
    """What answering the same for every sample would score: name of the constant -> its scores."""
    label = np.asarray(label, dtype=np.float64).reshape(-1)
    constants = {"median": float(np.median(label))}
    if style in _SIGNED:
        constants |= {"negative": -1.0, "positive": 1.0}
    else:
        constants |= {"mean": float(label.mean())}
    baselines = {}
    for name, value in constants.items():
        baselines[name] = scores(np.full_like(label, value), label, style)
    return baselines


def collapsed(prediction: ArrayLike, label: ArrayLike, style: str) -> str | None:
    """A warning when the model answers (nearly) the same for every sample, or only on one side of
    zero; else None."""
    prediction, label = _checked(prediction, label)
    spread, label_spread = float(prediction.std()), float(label.std())
    if label_spread == 0:
        return None  # one sample, or labels without differences: a constant answer is right
    sides, label_sides = np.unique(prediction > 0), np.unique(label > 0)
    one_sided = style in _SIGNED and len(sides) == 1 and len(label_sides) == 2
    if spread <= _COLLAPSED * label_spread:
        reason = (
            f"predictions hardly differ (standard deviation {spread:.3g}, "
            f"of the labels {label_spread:.3g})"
        )
    elif one_sided:
        side = "positive" if prediction[0] > 0 else "negative or zero"
        reason = f"all {len(prediction)} predictions are {side}"
    else:
        return None
    baselines = []
    for name, values in constant_baselines(label, style).items():
        texts = [score_text(metric, value) for metric, value in values.items()]
        baselines.append(f"{name}: {', '.join(texts)}")
    return f"the model has collapsed: {reason}. Constant answers score: {'; '.join(baselines)}"


def correlation(prediction: Array, label: Array) -> float:
    """Pearson's; 0 where either is constant."""
    if np.ptp(prediction) == 0 or np.ptp(label) == 0:
        return 0.0
    return float(np.corrcoef(prediction, label)[0, 1])


def concordance(prediction: Array, label: Array) -> float:
    """Lin's concordance correlation, 2 cov / (var + var + squared difference of means).

    1 where both are the same constant.
    """
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
    # clipped also for MAE and Corr, as in everybody's tables
    prediction, label = prediction.clip(-1, 1), label.clip(-1, 1)
    found = {
        "MAE": float(np.abs(prediction - label).mean()),
        "Corr": correlation(prediction, label),
    }
    for count in _SIMS_EDGES:
        found[f"Mult_acc_{count}"] = _accuracy(
            sims_class(prediction, count), sims_class(label, count)
        )
    found["F1_score"] = _weighted_f1(sims_class(prediction, 2), sims_class(label, 2))
    return found


def sims_class(values: Array, count: int) -> NDArray:
    """(N,) number of the bin of each score, of two, three or five."""
    edges = np.array(_SIMS_EDGES[count], np.float32)
    return np.digitize(values.astype(np.float32), edges, right=True)


def _phq(prediction: Array, label: Array) -> dict[str, float]:
    error = prediction - label
    return {
        "MAE": float(np.abs(error).mean()),
        "RMSE": float(np.sqrt((error**2).mean())),
        "CCC": concordance(prediction, label),
        "Corr": correlation(prediction, label),
    }


def _mmmo(prediction: Array, label: Array) -> dict[str, float]:
    scale = _phq(prediction, label)
    found = {name: scale[name] for name in ("MAE", "RMSE", "Corr")}
    found["Mult_acc_5"] = _accuracy(np.round(prediction.clip(1, 5)), np.round(label.clip(1, 5)))
    return found


_SIGNED = ("mosi", "sims")  # styles in which zero divides the classes
_STYLES: dict[str, Callable[[Array, Array], dict[str, float]]] = {
    "mosi": _mosi,
    "sims": _sims,
    "phq": _phq,
    "mmmo": _mmmo,
}


def _rounded_accuracy(prediction: Array, label: Array, limit: int) -> float:
    """Both clipped to [-limit, limit] and rounded half to even: that is ``np.round``, not the
    schoolbook's rule."""
    return _accuracy(np.round(prediction.clip(-limit, limit)), np.round(label.clip(-limit, limit)))


def _accuracy(prediction: NDArray, label: NDArray) -> float:
    return float((prediction == label).mean()) if len(label) else 0.0


def _weighted_f1(prediction: NDArray, label: NDArray) -> float:
    """F1 per class, weighted by the class's share of the *truth*."""
    if not len(label):
        return 0.0
    return f1(label, prediction, "weighted")


def _checked(prediction: ArrayLike, label: ArrayLike) -> tuple[Array, Array]:
    """Both as (N,) float64, finite, and equally many."""
    predictions = np.asarray(prediction, dtype=np.float64).reshape(-1)
    labels = np.asarray(label, dtype=np.float64).reshape(-1)
    for name, values in (("prediction", predictions), ("label", labels)):
        is_finite = np.isfinite(values)
        if not is_finite.all():
            first = int(np.flatnonzero(~is_finite)[0])
            raise Refused(
                f"{name} {first} of {len(values)} is {values[first]}; scores need finite numbers"
            )
    if len(predictions) != len(labels) or not len(predictions):
        raise ValueError(
            f"scores need as many predictions as labels, got {len(predictions)} and {len(labels)}"
        )
    return predictions, labels


def auilc(rates: Sequence[float], values: Sequence[float]) -> float:
    """Area under the indicator's line chart (Yuan et al., ACM MM 2021): the trapezoid rule over the
    rates.

    It sums up a metric's values over rates of missing data. Over rates from 0 to 1 (MOSI, MOSEI) it
    is about the mean; over 0 to 0.5 (SIMS) about half of it, so tables of different grids cannot be
    compared. The rates must rise.
    """
    if len(rates) != len(values) or len(rates) < 2:
        raise ValueError(
            f"an area needs two or more rates with a value each, got {len(rates)} and {len(values)}"
        )
    if (np.diff(rates) <= 0).any():
        raise ValueError(f"rates must rise, got {list(rates)}")
    return float(np.trapezoid(values, rates))
