"""Accuracy and F1 of predicted classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import f1_score


def scores(prediction: ArrayLike, label: ArrayLike, num_classes: int) -> dict[str, float]:
    """Accuracy, Macro_F1 (the plain mean over all ``num_classes``) and Weighted_F1 (weighted by share of the truth).

    Args:
        prediction: (N,) class numbers, or (N, classes) logits.
        label: (N,) class numbers; whole-valued floats will do.
    """
    predicted, truth = np.asarray(prediction), np.asarray(label).reshape(-1)
    if predicted.ndim == 2 and predicted.shape[1] == num_classes:
        predicted = predicted.argmax(1)
    if predicted.shape != truth.shape or not len(truth):
        raise ValueError(
            f"scores need (N,) classes or (N, {num_classes}) logits for N labels, "
            f"got {predicted.shape} for {truth.shape}"
        )
    for name, values in (("prediction", predicted), ("label", truth)):
        wrong = np.flatnonzero((values != np.floor(values)) | (values < 0) | (values >= num_classes))
        if len(wrong):
            raise ValueError(f"{name} {wrong[0]} is {values[wrong[0]]}, no class number in 0..{num_classes - 1}")
    predicted, truth = predicted.astype(np.int64), truth.astype(np.int64)
    classes = list(range(num_classes))
    return {
        "Accuracy": float((predicted == truth).mean()),
        "Macro_F1": float(f1_score(truth, predicted, labels=classes, average="macro", zero_division=0)),
        "Weighted_F1": float(f1_score(truth, predicted, labels=classes, average="weighted", zero_division=0)),
    }


def floors(label: ArrayLike, num_classes: int) -> dict[str, dict[str, float]]:
    """What always answering the most frequent class would score."""
    truth = np.asarray(label).reshape(-1)
    majority = np.bincount(truth.astype(np.int64), minlength=num_classes).argmax()
    return {"majority": scores(np.full(truth.shape, majority), truth, num_classes)}


def collapsed(prediction: ArrayLike, label: ArrayLike, num_classes: int) -> str | None:
    """A warning when every answer is the same class though the truth has several; else None."""
    predicted = np.asarray(prediction)
    predicted = predicted.argmax(1) if predicted.ndim == 2 else predicted
    if len(np.unique(predicted)) > 1 or len(np.unique(np.asarray(label))) < 2:
        return None
    values = floors(label, num_classes)["majority"]
    beside = ", ".join(f"{metric} {value:.4f}" for metric, value in values.items())
    return (
        f"the model has collapsed: all {len(predicted)} answers are class {int(predicted[0])}. "
        f"Always answering the most frequent class scores: {beside}"
    )
