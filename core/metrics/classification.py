"""Accuracy and F1 of predicted classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from core.metrics.declared import score_text
from core.metrics.f1 import f1


def scores(
    prediction: ArrayLike, label: ArrayLike, num_classes: int | None = None
) -> dict[str, float]:
    """Accuracy, Macro_F1 (the plain mean over the classes) and Weighted_F1 (weighted by share of
    the truth).

    Args:
        prediction: (N,) class numbers, or (N, classes) logits.
        label: (N,) class numbers; whole-valued floats will do.
        num_classes: how many there are; None takes those that logits have columns for, else those
            that occur.
    """
    predicted, truth = np.asarray(prediction), np.asarray(label).reshape(-1)
    if predicted.ndim == 2 and num_classes in (None, predicted.shape[1]):
        num_classes = predicted.shape[1]
        predicted = predicted.argmax(1)
    if predicted.shape != truth.shape or not len(truth):
        raise ValueError(
            f"scores need (N,) classes or (N, classes) logits for N labels, got {predicted.shape} for {truth.shape}"
        )
    classes: np.ndarray | None = None  # those that occur
    if num_classes is None:
        num_classes = int(max(predicted.max(), truth.max())) + 1
    else:
        classes = np.arange(num_classes)
    _refuse_other_numbers("prediction", predicted, num_classes)
    _refuse_other_numbers("label", truth, num_classes)
    predicted, truth = predicted.astype(np.int64), truth.astype(np.int64)
    return {
        "Accuracy": float((predicted == truth).mean()),
        "Macro_F1": f1(truth, predicted, "macro", classes),
        "Weighted_F1": f1(truth, predicted, "weighted", classes),
    }


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


def _refuse_other_numbers(name: str, values: np.ndarray, num_classes: int) -> None:
    is_class = (values == np.floor(values)) & (values >= 0) & (values < num_classes)
    wrong = np.flatnonzero(~is_class)
    if len(wrong):
        raise ValueError(
            f"{name} {wrong[0]} is {values[wrong[0]]}, no class number in 0..{num_classes - 1}"
        )
