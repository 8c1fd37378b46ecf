"""Scores of several labels at once, each of which a sample has or lacks (MOSEI's six emotions).

``Weighted_acc`` is what MOSEI's tables call weighted accuracy (Tong et al., ACL 2017): the mean of
the shares of right answers among samples that have the label and among those that lack it. F1 here
is of having the label; its mean over labels is ``Macro_F1``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from core.command import Refused

EVEN = 0.5  # the threshold where none is tuned


def scores(
    probability: ArrayLike,
    label: ArrayLike,
    names: Sequence[str],
    thresholds: ArrayLike | None = None,
) -> dict[str, float]:
    """Macro_F1, Micro_F1, Weighted_F1, Weighted_acc, Subset_acc, Hamming; then ``NAME/F1`` and
    ``NAME/Weighted_acc`` of each label.

    Args:
        probability: (N, K) of having each label; (N, K) ``label`` is 1 or 0.
        thresholds: (K,), from which on a label is answered; one half by default.
    """
    probabilities, truth = _checked(probability, label)
    if thresholds is None:
        thresholds = np.full(truth.shape[1], EVEN)
    answer = probabilities >= np.asarray(thresholds, np.float64)
    by_label = _f1(truth, answer)
    weighted = _weighted_accuracy(truth, answer)
    support = truth.sum(0)
    found = {
        "Macro_F1": float(by_label.mean()),
        "Micro_F1": float(_f1(truth.reshape(-1, 1), answer.reshape(-1, 1))[0]),
        "Weighted_F1": float((by_label * support).sum() / max(1, support.sum())),
        "Weighted_acc": float(weighted.mean()),
        "Subset_acc": float((truth == answer).all(1).mean()),
        "Hamming": float((truth != answer).mean()),
    }
    for number, name in enumerate(names):
        found[f"{name}/F1"] = float(by_label[number])
        found[f"{name}/Weighted_acc"] = float(weighted[number])
    return found


def tuned_thresholds(probability: ArrayLike, label: ArrayLike) -> NDArray[np.float64]:
    """(K,) thresholds by which each label's F1 is best on these samples, validation ones; of equal
    ones the nearest to one half, and one half for a label that no sample has.

    A threshold lies in the middle between two probabilities that occur.
    """
    probabilities, truth = _checked(probability, label)
    found = np.full(truth.shape[1], EVEN)
    for number in range(truth.shape[1]):
        if truth[:, number].any():
            found[number] = _best_threshold(probabilities[:, number], truth[:, number])
    return found


def constant_baselines(label: ArrayLike, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """What always answering all labels, and none, would score."""
    truth = np.asarray(label, np.float64)
    return {
        "all": scores(np.ones_like(truth), truth, names),
        "none": scores(np.zeros_like(truth), truth, names),
    }


def collapses(answer: NDArray, label: ArrayLike, names: Sequence[str]) -> list[str]:
    """A warning for each label that is answered for all samples or none, though some have it and
    some lack it; ``answer`` (N, K) bool."""
    truth = np.asarray(label) > 0
    warnings = []
    for number, name in enumerate(names):
        if len(np.unique(answer[:, number])) == 1 < len(np.unique(truth[:, number])):
            whom = "all" if answer[0, number] else "none"
            warnings.append(
                f"{name}: the model has collapsed: {whom} of {len(truth)} samples are said to have "
                f"it, and {int(truth[:, number].sum())} have"
            )
    return warnings


def _best_threshold(probability: NDArray, truth: NDArray) -> float:
    """For (N,) of one label."""
    order = np.argsort(-probability, kind="stable")
    hits = np.cumsum(truth[order])  # (N,) if all up to this place are answered
    answered = np.arange(1, len(order) + 1)
    by_place = 2.0 * hits / (answered + truth.sum())
    ordered = probability[order]
    following = np.append(ordered[1:], 0.0)
    # equal probabilities are answered together or not at all
    is_cut = ordered > following
    is_cut[-1] = True
    middle = (ordered + following) / 2
    places = np.flatnonzero(is_cut)
    best = by_place[places].max()
    candidates = middle[places[by_place[places] == best]]
    return float(candidates[np.abs(candidates - EVEN).argmin()])


def _f1(truth: NDArray, answer: NDArray) -> NDArray[np.float64]:
    """(K,) of having each label; 0 where it is neither had nor answered."""
    hits = (truth & answer).sum(0)
    total = truth.sum(0) + answer.sum(0)
    return np.divide(2.0 * hits, total, out=np.zeros(len(total)), where=total > 0)


def _weighted_accuracy(truth: NDArray, answer: NDArray) -> NDArray[np.float64]:
    """(K,) means over having and lacking, as far as both occur."""
    right = truth == answer
    shares = []
    for side in (truth, ~truth):
        count = side.sum(0)
        share = np.divide((right & side).sum(0), count, out=np.zeros(len(count)), where=count > 0)
        shares.append(np.where(count > 0, share, np.nan))
    return np.nanmean(np.stack(shares), axis=0)


def _checked(probability: ArrayLike, label: ArrayLike) -> tuple[NDArray, NDArray]:
    probabilities = np.asarray(probability, np.float64)
    labels = np.asarray(label, np.float64)
    if probabilities.ndim != 2 or probabilities.shape != labels.shape or not len(labels):
        raise ValueError(
            f"scores need (N, K) probabilities for (N, K) labels, got {probabilities.shape} for "
            f"{labels.shape}"
        )
    if not np.isfinite(probabilities).all():
        first = int(np.argwhere(~np.isfinite(probabilities))[0, 0])
        raise Refused(
            f"prediction {first} of {len(probabilities)} is not finite; the model has diverged"
        )
    is_binary = (labels == 0) | (labels == 1)
    if not is_binary.all():
        first = int(np.argwhere(~is_binary)[0, 0])
        raise ValueError(f"label {first} is {labels[first].tolist()}; labels are 1 or 0")
    return probabilities, labels > 0
