"""A model's predictions for each sample: as a table, and as plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.shards.manifest import Labels
from launch.reports.plots import INK, figure, save

# CH-SIMS names five classes of scores in [-1, 1]; a score belongs to the first whose edge it does
# not exceed.
SIMS_EDGES = (-0.7, -0.1, 0.1, 0.7)
SIMS_CLASSES = ("negative", "weakly neg.", "neutral", "weakly pos.", "positive")
RANGES = 6  # into which a scale of many points is cut


@dataclass(frozen=True)
class Predictions:
    """Of all samples of a split, in the split's order, the same on every rank."""

    index: np.ndarray  # (N,) number of the sample in the split
    prediction: np.ndarray  # (N,) scores, or (N, classes) logits
    label: np.ndarray  # (N,)

    @staticmethod
    def of(index: np.ndarray, prediction: np.ndarray, label: np.ndarray) -> Predictions:
        """From rows in any order."""
        order = np.argsort(index, kind="stable")
        return Predictions(index[order], prediction[order], label[order])

    @property
    def classes(self) -> np.ndarray:
        """(N,) predicted class numbers, for classification."""
        return self.prediction.argmax(-1)


def write_predictions(path: Path, ids: list[str], predictions: Predictions, labels: Labels) -> None:
    """One row per sample: id, label, prediction, and the probability of each class where there are
    classes."""
    import pandas as pd
    from scipy.special import softmax

    table = pd.DataFrame({"id": ids, "label": predictions.label})
    if labels.kind == "classes":
        probabilities = softmax(predictions.prediction, axis=-1)
        table["label"] = [labels.names[int(label)] for label in predictions.label]
        table["prediction"] = [labels.names[number] for number in predictions.classes]
        for number, name in enumerate(labels.names):
            table[f"p_{name}"] = probabilities[:, number]
    else:
        table["prediction"] = predictions.prediction
        table["error"] = predictions.prediction - predictions.label
    table.to_csv(path, index=False)


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Columns of equal length as CSV."""
    import pandas as pd

    pd.DataFrame(columns).to_csv(path, index=False)


def draw(
    run_dir: Path, split: str, predictions: Predictions, labels: Labels
) -> list[tuple[str, str]]:
    """Plots of one split's predictions: (caption, file name)."""
    plots = []
    if labels.kind != "classes":
        plots.append(_draw_scatter(run_dir, split, predictions, labels))
    plots.append(_draw_confusion(run_dir, split, predictions, labels))
    return plots


def _draw_scatter(
    run_dir: Path, split: str, predictions: Predictions, labels: Labels
) -> tuple[str, str]:
    drawing, axes = figure(5.2, 5.0)
    low, high = labels.low, labels.high
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle="--", label="perfect")
    axes.scatter(
        predictions.label,
        predictions.prediction,
        s=14,
        alpha=0.45,
        linewidths=0,
        label=f"{len(predictions.label)} {split} samples",
    )
    axes.set(
        xlabel="true score",
        ylabel="predicted score",
        title="Predicted against true",
        xlim=(low - 0.2, high + 0.2),
    )
    axes.legend(loc="upper left", frameon=False)
    caption = f"Predicted against true scores on the {split} split."
    return caption, save(drawing, run_dir / f"{split}_scatter.png")


def _draw_confusion(
    run_dir: Path, split: str, predictions: Predictions, labels: Labels
) -> tuple[str, str]:
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    if labels.kind == "classes":
        names = list(labels.names)
        truth, answer = predictions.label.astype(int), predictions.classes
    else:
        names = _class_names(labels)
        truth = _class_numbers(predictions.label, labels)
        answer = _class_numbers(predictions.prediction, labels)
    counts = confusion_matrix(truth, answer, labels=range(len(names)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawing, axes = figure(5.6, 5.0)
    short = max(map(len, names)) < 4
    display = ConfusionMatrixDisplay(shares, display_labels=names)
    display.plot(
        ax=axes,
        cmap="Blues",
        colorbar=False,
        xticks_rotation=0 if short else 30,
        im_kw={"vmin": 0, "vmax": 1},
        text_kw={"fontsize": 8},
    )
    # the shade is the share of the true class, the number a count
    for text, count, share in zip(display.text_.flat, counts.flat, shares.flat, strict=True):
        text.set(text=str(count), color="white" if share > 0.55 else INK)
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion by class")
    axes.grid(False)
    caption = f"Confusion by class on the {split} split: counts, shaded by share of the true class."
    return caption, save(drawing, run_dir / f"{split}_confusion.png")


def _points(labels: Labels) -> np.ndarray:
    """The whole numbers of the scale."""
    return np.arange(round(labels.low), round(labels.high) + 1)


def _class_names(labels: Labels) -> list[str]:
    """Names of the classes in which scores are counted: the scale's points, or fewer and wider
    where it has many."""
    points = _points(labels)
    if len(points) < 4:
        return list(SIMS_CLASSES)
    if len(points) <= 2 * RANGES:
        return [str(point) for point in points]
    edges = np.linspace(labels.low, labels.high, RANGES + 1)
    return [f"{low:.0f}-{high:.0f}" for low, high in zip(edges[:-1], edges[1:], strict=True)]


def _class_numbers(scores: np.ndarray, labels: Labels) -> np.ndarray:
    """(N,) the class of each score, by number of ``_class_names``."""
    points = _points(labels)
    if len(points) < 4:
        return np.digitize(scores, SIMS_EDGES, right=True)
    if len(points) <= 2 * RANGES:
        nearest = np.round(np.clip(scores, labels.low, labels.high))
        return (nearest - points[0]).astype(int)
    edges = np.linspace(labels.low, labels.high, RANGES + 1)
    return np.digitize(scores, edges[1:-1])
