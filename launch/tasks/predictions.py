"""What a model said about each sample: as a table, and as plots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from data_shards.shards.manifest import Labels
from launch.reports.plots import INK, figure, save


@dataclass(frozen=True)
class Predictions:
    """Of all samples of a split, in the split's order, the same on every rank."""

    index: np.ndarray  # (N,) place in the split
    prediction: np.ndarray  # (N,) scores, or (N, classes) logits
    label: np.ndarray  # (N,)

    @staticmethod
    def of(index: np.ndarray, prediction: np.ndarray, label: np.ndarray) -> Predictions:
        order = np.argsort(index, kind="stable")
        return Predictions(index[order], prediction[order], label[order])

    @property
    def classes(self) -> np.ndarray:
        """(N,) predicted class numbers, for classification."""
        return self.prediction.argmax(-1)


def write_predictions(path: Path, ids: list[str], said: Predictions, labels: Labels) -> None:
    """One row per sample: id, label, prediction, and the probability of each class where there are classes."""
    table = pd.DataFrame({"id": ids, "label": said.label})
    if labels.kind == "classes":
        logits = said.prediction - said.prediction.max(-1, keepdims=True)
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        table["label"] = [labels.names[int(label)] for label in said.label]
        table["prediction"] = [labels.names[number] for number in said.classes]
        for number, name in enumerate(labels.names):
            table[f"p_{name}"] = chances[:, number]
    else:
        table["prediction"] = said.prediction
        table["error"] = said.prediction - said.label
    table.to_csv(path, index=False)


def draw(run_dir: Path, split: str, said: Predictions, labels: Labels) -> list[tuple[str, str]]:
    """Pictures of one split's predictions: (caption, file name)."""
    plots = []
    if labels.kind != "classes":
        plots.append(_draw_scatter(run_dir, split, said, labels))
    plots.append(_draw_confusion(run_dir, split, said, labels))
    return plots


def _draw_scatter(run_dir: Path, split: str, said: Predictions, labels: Labels) -> tuple[str, str]:
    drawing, axes = figure(5.2, 5.0)
    low, high = labels.low, labels.high
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle="--", label="perfect")
    axes.scatter(
        said.label,
        said.prediction,
        s=14,
        alpha=0.45,
        linewidths=0,
        label=f"{len(said.label)} {split} samples",
    )
    axes.set(
        xlabel="true score",
        ylabel="predicted score",
        title="Predicted against true",
        xlim=(low - 0.2, high + 0.2),
    )
    axes.legend(loc="upper left", frameon=False)
    return f"Predicted against true scores on the {split} split.", save(
        drawing, run_dir / f"{split}_scatter.png"
    )


def _draw_confusion(
    run_dir: Path, split: str, said: Predictions, labels: Labels
) -> tuple[str, str]:
    if labels.kind == "classes":
        names = list(labels.names)
        truth, answer = said.label.astype(int), said.classes
    else:
        steps = np.arange(round(labels.low), round(labels.high) + 1)
        if len(steps) < 4:  # scores in [-1, 1]: the five classes of SIMS
            edges = np.array([-0.7, -0.1, 0.1, 0.7])
            names = ["negative", "weakly neg.", "neutral", "weakly pos.", "positive"]
            truth, answer = (
                np.digitize(said.label, edges, right=True),
                np.digitize(said.prediction, edges, right=True),
            )
        elif len(steps) > 12:  # a scale of many points: six equal ranges
            edges = np.linspace(labels.low, labels.high, 7)
            names = [f"{a:.0f}-{b:.0f}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
            truth, answer = (
                np.digitize(values, edges[1:-1]) for values in (said.label, said.prediction)
            )
        else:
            names = [str(step) for step in steps]
            truth, answer = (
                (np.round(np.clip(values, labels.low, labels.high)) - steps[0]).astype(int)
                for values in (said.label, said.prediction)
            )
    counts = confusion_matrix(truth, answer, labels=range(len(names)))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawing, axes = figure(5.6, 5.0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            color = "white" if shares[row, column] > 0.55 else INK
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                color=color,
                fontsize=8,
            )
    axes.set(xlabel="predicted class", ylabel="true class", title="Confusion by class")
    axes.set_xticks(range(len(names)), names, rotation=0 if max(map(len, names)) < 4 else 30)
    axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    return (
        f"Confusion by class on the {split} split: counts, shaded by share of the true class.",
        save(drawing, run_dir / f"{split}_confusion.png"),
    )
