"""Accuracy, F1 and confusion of predicted classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from core.metrics.declared import score_text
from core.metrics.f1 import f1


def scores(
    prediction: ArrayLike, label: ArrayLike, num_classes: int | None = None
) -> dict[str, float]:
    """Accuracy, Unweighted_acc, Macro_F1 (the plain mean over the classes) and Weighted_F1 (weighted
    by share of the truth).

    Tables of IEMOCAP and MELD call Accuracy the weighted one (WA), since a class counts by its
    samples, and the mean of the shares of right answers in each class that occurs the unweighted
    one (UA).

    Args:
        prediction: (N,) class numbers, or (N, classes) logits.
        label: (N,) class numbers; whole-valued floats will do.
        num_classes: how many there are; None takes those that logits have columns for, else those
            that occur.
    """
    predicted, truth, classes = _checked(prediction, label, num_classes)
    return {
        "Accuracy": float((predicted == truth).mean()),
        "Unweighted_acc": float(_recall(predicted, truth, np.unique(truth)).mean()),
        "Macro_F1": f1(truth, predicted, "macro", classes),
        "Weighted_F1": f1(truth, predicted, "weighted", classes),
    }


def class_scores(prediction: ArrayLike, label: ArrayLike, names: Sequence[str]) -> dict[str, float]:
    """``NAME/F1`` of each class, and ``NAME/Recall``, the share of its samples that are found; 0 for
    a class that nothing is and nobody answers.

    Args:
        prediction: (N,) class numbers, or (N, classes) logits; ``label`` (N,) class numbers.
        names: of the classes.
    """
    predicted, truth, _ = _checked(prediction, label, len(names))
    recall = _recall(predicted, truth, np.arange(len(names)))
    found = {}
    for number, name in enumerate(names):
        one_class = np.array([number])
        found[f"{name}/F1"] = f1(truth, predicted, "macro", one_class)
        found[f"{name}/Recall"] = float(recall[number])
    return found


def confusion(prediction: ArrayLike, label: ArrayLike, num_classes: int) -> np.ndarray:
    """(classes, classes) int64: samples by their class, and by the class that was answered."""
    predicted, truth, _ = _checked(prediction, label, num_classes)
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def constant_baselines(
    label: ArrayLike, num_classes: int | None = None
) -> dict[str, dict[str, float]]:
    """What always answering the most frequent class would score."""
    truth = np.asarray(label).reshape(-1)
    majority = np.bincount(truth.astype(np.int64)).argmax()
    return {"majority": scores(np.full(truth.shape, majority), truth, num_classes)}


def collapsed(
    prediction: ArrayLike, label: ArrayLike, num_classes: int | None = None
) -> str | None:
    """A warning when every answer is the same class though the truth has several; else None."""
    predicted = np.asarray(prediction)
    if predicted.ndim == 2:
        predicted = predicted.argmax(1)
    answers, labels = np.unique(predicted), np.unique(np.asarray(label))
    if len(answers) > 1 or len(labels) < 2:
        return None
    majority = constant_baselines(label, num_classes)["majority"]
    beside = ", ".join(score_text(name, value) for name, value in majority.items())
    return (
        f"the model has collapsed: all {len(predicted)} answers are class {int(predicted[0])}. "
        f"Always answering the most frequent class scores: {beside}"
    )


def _recall(predicted: np.ndarray, truth: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(classes,) shares of each class's samples that are found; 0 for a class without samples."""
    shares = np.zeros(len(classes))
    for place, number in enumerate(classes):
        members = truth == number
        if members.any():
            shares[place] = (predicted[members] == number).mean()
    return shares


def _checked(
    prediction: ArrayLike, label: ArrayLike, num_classes: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(N,) predicted and (N,) true class numbers, int64, and the classes that averages are over:
    None for those that occur."""
    predicted, truth = np.asarray(prediction), np.asarray(label).reshape(-1)
    if predicted.ndim == 2 and num_classes in (None, predicted.shape[1]):
        num_classes = predicted.shape[1]
        predicted = predicted.argmax(1)
    if predicted.shape != truth.shape or not len(truth):
        raise ValueError(
            f"scores need (N,) classes or (N, classes) logits for N labels, got {predicted.shape} for {truth.shape}"
        )
    classes: np.ndarray | None = None
    if num_classes is None:
        num_classes = int(max(predicted.max(), truth.max())) + 1
    else:
        classes = np.arange(num_classes)
    _refuse_other_numbers("prediction", predicted, num_classes)
    _refuse_other_numbers("label", truth, num_classes)
    return predicted.astype(np.int64), truth.astype(np.int64), classes


def _refuse_other_numbers(name: str, values: np.ndarray, num_classes: int) -> None:
    is_class = (values == np.floor(values)) & (values >= 0) & (values < num_classes)
    wrong = np.flatnonzero(~is_class)
    if len(wrong):
        raise ValueError(
            f"{name} {wrong[0]} is {values[wrong[0]]}, no class number in 0..{num_classes - 1}"
        )
