"""A model's predictions for each sample: as a table, and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.metrics.regression import correlation
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
    prediction: np.ndarray  # (N,) scores, (N, K) of K targets, or (N, classes) logits
    label: np.ndarray  # (N,), or (N, K)

    @staticmethod
    def of(index: np.ndarray, prediction: np.ndarray, label: np.ndarray) -> Predictions:
        """From rows in any order."""
        order = np.argsort(index, kind="stable")
        return Predictions(index[order], prediction[order], label[order])

    @property
    def classes(self) -> np.ndarray:
        """(N,) predicted class numbers, for classification."""
        return self.prediction.argmax(-1)


def write_predictions(
    path: Path,
    records: Sequence[Mapping[str, Any]],
    predictions: Predictions,
    labels: Labels,
) -> None:
    """One row per sample: id, label, prediction, the probability of each class where there are
    classes, and the transcript where there are transcripts.

    Args:
        records: what the shards say of each sample, as ``Stream.records`` gives it.
    """
    import pandas as pd

    ids = [str(record["id"]) for record in records]
    table = pd.DataFrame({"id": ids})
    if labels.kind != "classes" and labels.names:
        for number, name in enumerate(labels.names):
            table[f"label_{name}"] = predictions.label[:, number]
            table[f"prediction_{name}"] = predictions.prediction[:, number]
    elif labels.kind == "classes":
        probabilities = _softmax(predictions.prediction)
        table["label"] = [labels.names[int(label)] for label in predictions.label]
        table["prediction"] = [labels.names[number] for number in predictions.classes]
        for number, name in enumerate(labels.names):
            table[f"p_{name}"] = probabilities[:, number]
    else:
        table["label"] = predictions.label
        table["prediction"] = predictions.prediction
        table["error"] = predictions.prediction - predictions.label
    if any("text" in record for record in records):
        table["text"] = [record.get("text", "") for record in records]
    table.to_csv(path, index=False)


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Columns of equal length as CSV."""
    import pandas as pd

    pd.DataFrame(columns).to_csv(path, index=False)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """(N, classes) probabilities."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def draw(
    run_dir: Path, split: str, predictions: Predictions, labels: Labels
) -> list[tuple[str, str]]:
    """Plots of one split's predictions: (caption, file name)."""
    if labels.kind != "classes" and labels.names:
        return [_draw_targets(run_dir, split, predictions, labels)]
    plots = []
    if labels.kind != "classes":
        plots.append(_draw_scatter(run_dir, split, predictions, labels))
    plots.append(_draw_confusion(run_dir, split, predictions, labels))
    return plots


def _draw_targets(
    run_dir: Path, split: str, predictions: Predictions, labels: Labels
) -> tuple[str, str]:
    found = []
    for number in range(len(labels.names)):
        found.append(
            correlation(
                predictions.prediction[:, number].astype(np.float64),
                predictions.label[:, number].astype(np.float64),
            )
        )
    drawing, axes = figure(6.0, 1.2 + 0.3 * len(labels.names))
    axes.barh(range(len(found)), found)
    axes.set_yticks(range(len(found)), labels.names)
    axes.invert_yaxis()
    axes.set(xlabel="Corr", title="Correlation by target")
    caption = f"Correlation of predicted with true scores by target, on the {split} split."
    return caption, save(drawing, run_dir / f"{split}_targets.png")


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

    if labels.kind == "classes":
        names = list(labels.names)
        truth, answer = predictions.label.astype(int), predictions.classes
    else:
        names = _class_names(labels)
        truth = _class_numbers(predictions.label, labels)
        answer = _class_numbers(predictions.prediction, labels)
    counts = np.zeros((len(names), len(names)), np.int64)  # true, predicted
    np.add.at(counts, (truth, answer), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawing, axes = figure(5.6, 5.0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    short = max(map(len, names)) < 4
    axes.set_xticks(range(len(names)), names, rotation=0 if short else 30)
    axes.set_yticks(range(len(names)), names)
    # the shade is the share of the true class, the number a count
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.55 else INK
        axes.text(column, row, str(count), color=color, fontsize=8, ha="center", va="center")
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
