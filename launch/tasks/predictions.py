"""A model's predictions for each sample: as a table, and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.metrics import multilabel
from core.metrics.classification import confusion
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
    thresholds: np.ndarray | None = None,
) -> None:
    """One row per sample: id, label, prediction, the probability of each class or label where there
    are some, and the transcript where there are transcripts.

    Args:
        thresholds: (K,) of K labels that a sample has or lacks; None where there are none.
        records: what the shards say of each sample, as ``Stream.records`` gives it.
    """
    import pandas as pd

    ids = [str(record["id"]) for record in records]
    table = pd.DataFrame({"id": ids})
    if thresholds is not None:
        chances = probabilities(predictions.prediction)
        for number, name in enumerate(labels.names):
            table[f"label_{name}"] = predictions.label[:, number].astype(int)
            table[f"prediction_{name}"] = (chances[:, number] >= thresholds[number]).astype(int)
            table[f"p_{name}"] = chances[:, number]
    elif labels.kind != "classes" and labels.names:
        for number, name in enumerate(labels.names):
            table[f"label_{name}"] = predictions.label[:, number]
            table[f"prediction_{name}"] = predictions.prediction[:, number]
    elif labels.kind == "classes":
        shares = _softmax(predictions.prediction)
        table["label"] = [labels.names[int(label)] for label in predictions.label]
        table["prediction"] = [labels.names[number] for number in predictions.classes]
        for number, name in enumerate(labels.names):
            table[f"p_{name}"] = shares[:, number]
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


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(N, K) float64, each label's own, of (N, K) logits."""
    # by tanh, which does not overflow
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """(N, classes) probabilities."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def draw(
    run_dir: Path,
    split: str,
    predictions: Predictions,
    labels: Labels,
    thresholds: np.ndarray | None = None,
) -> list[tuple[str, str]]:
    """Plots of one split's predictions: (caption, file name). Of classes the confusion is a table
    as well.

    Args:
        thresholds: as ``write_predictions`` takes them.
    """
    if thresholds is not None:
        return [_draw_labels(run_dir, split, predictions, labels, thresholds)]
    if labels.kind != "classes" and labels.names:
        return [_draw_targets(run_dir, split, predictions, labels)]
    plots = []
    if labels.kind != "classes":
        plots.append(_draw_scatter(run_dir, split, predictions, labels))
    plots.append(_draw_confusion(run_dir, split, predictions, labels))
    return plots


def _draw_labels(
    run_dir: Path, split: str, predictions: Predictions, labels: Labels, thresholds: np.ndarray
) -> tuple[str, str]:
    chances = probabilities(predictions.prediction)
    by_name = multilabel.scores(chances, predictions.label, labels.names, thresholds)
    found = [by_name[f"{name}/F1"] for name in labels.names]
    caption = f"F1 of having each label, on the {split} split."
    plot = _bars(run_dir / f"{split}_labels.png", labels.names, found, "F1", "F1 by label")
    return caption, plot


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
    caption = f"Correlation of predicted with true scores by target, on the {split} split."
    path = run_dir / f"{split}_targets.png"
    return caption, _bars(path, labels.names, found, "Corr", "Correlation by target")


def _bars(
    path: Path, names: Sequence[str], values: Sequence[float], quantity: str, title: str
) -> str:
    """A bar for each name, the first on top; the name of the file."""
    drawing, axes = figure(6.0, 1.2 + 0.3 * len(names))
    axes.barh(range(len(values)), values)
    axes.set_yticks(range(len(values)), names)
    axes.invert_yaxis()
    axes.set(xlabel=quantity, title=title)
    return save(drawing, path)


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
    counts = confusion(answer, truth, len(names))
    if labels.kind == "classes":
        columns = {name: counts[:, number] for number, name in enumerate(names)}
        write_table(run_dir / f"{split}_confusion.csv", {"true_class": names, **columns})
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
