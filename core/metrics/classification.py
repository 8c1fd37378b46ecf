"""Accuracy and F1 of predicted classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score


def scores(
    prediction: ArrayLike, label: ArrayLike, num_classes: int | None = None
) -> dict[str, float]:
    """Accuracy, Macro_F1 (the plain mean over the classes) and Weighted_F1 (weighted by share of the truth).

    Args:
        prediction: (N,) class numbers, or (N, classes) logits.
        label: (N,) class numbers; whole-valued floats will do.
        num_classes: how many there are; None takes those that logits have columns for, else those that occur.
    """
    predicted, truth = np.asarray(prediction), np.asarray(label).reshape(-1)
    if predicted.ndim == 2 and num_classes in (None, predicted.shape[1]):
        num_classes = predicted.shape[1]
        predicted = predicted.argmax(1)
    if predicted.shape != truth.shape or not len(truth):
        raise ValueError(
            f"scores need (N,) classes or (N, classes) logits for N labels, got {predicted.shape} for {truth.shape}"
        )
    if num_classes is None:
        num_classes = int(max(predicted.max(), truth.max())) + 1
        present: list[int] | None = None
    else:
        present = list(range(num_classes))
    for name, values in (("prediction", predicted), ("label", truth)):
        wrong = np.flatnonzero(
            (values != np.floor(values)) | (values < 0) | (values >= num_classes)
        )
        if len(wrong):
            raise ValueError(
                f"{name} {wrong[0]} is {values[wrong[0]]}, no class number in 0..{num_classes - 1}"
            )
    predicted, truth = predicted.astype(np.int64), truth.astype(np.int64)
    return {
        "Accuracy": float((predicted == truth).mean()),
        "Macro_F1": float(
            f1_score(truth, predicted, labels=present, average="macro", zero_division=0)
        ),
        "Weighted_F1": float(
            f1_score(truth, predicted, labels=present, average="weighted", zero_division=0)
        ),
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
    predicted = predicted.argmax(1) if predicted.ndim == 2 else predicted
    if len(np.unique(predicted)) > 1 or len(np.unique(np.asarray(label))) < 2:
        return None
    values = constant_baselines(label, num_classes)["majority"]
    beside = ", ".join(f"{metric} {value:.4f}" for metric, value in values.items())
    return (
        f"the model has collapsed: all {len(predicted)} answers are class {int(predicted[0])}. "
        f"Always answering the most frequent class scores: {beside}"
    )
