"""Classes made of scores, labels made of intensities, and how much each of them counts; whole runs
of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from raw_tables import write_json
from small_models import small_run, small_words
from training_runs import train_in_turn

from core.batch import Utterances
from core.losses.labels import LabelLoss
from core.metrics import multilabel
from data_shards.convert import convert
from data_shards.shards.manifest import Labels
from data_shards.sources.raw_dataset import Options
from launch.config import ClassLoss, ConfigError, Run, override
from launch.tasks.build import build_task
from launch.tasks.label_scheme import ClassWeights, LabelScheme, label_scheme

MOSI, SIMS = Labels(resolution=0.2), Labels(low=-1, high=1, resolution=0.2)
EMOTIONS = ("joy", "anger", "fear")
SAMPLES = 60


def scheme_of(classes: Any, labels: Labels) -> LabelScheme:
    run = replace(Run("baseline", None), classes=classes)
    return label_scheme(run, labels)


@pytest.mark.parametrize(
    ("classes", "labels", "scores", "expected"),
    [
        (7, MOSI, [-3, -2.5, -0.4, 0, 0.5, 1.6, 3], [0, 1, 3, 3, 3, 5, 6]),
        (5, MOSI, [-3, -1.6, 0, 2.4], [0, 0, 2, 4]),
        (3, MOSI, [-0.2, 0, 0.2], [0, 1, 2]),
        (2, MOSI, [-0.2, 0, 0.2], [0, 1, 1]),
        (2, SIMS, [-0.2, 0, 0.2], [0, 0, 1]),
        (3, SIMS, [-0.2, -0.1, 0.1, 0.2], [0, 0, 1, 2]),
        (5, SIMS, [-1, -0.7, -0.6, 0.1, 0.7, 0.8], [0, 0, 1, 2, 3, 4]),
        ("sign", MOSI, [-0.2, 0, 0.2], [0, 1, 2]),
    ],
)
def test_scores_become_the_classes_of_the_field(
    classes: Any, labels: Labels, scores: list[float], expected: list[int]
) -> None:
    scheme = scheme_of(classes, labels)
    assert scheme.convert(torch.tensor(scores)).tolist() == expected
    assert scheme.labels.kind == "classes"
    assert len(scheme.learnt) == (3 if classes == "sign" else classes)


def test_targets_above_zero_become_labels() -> None:
    scheme = scheme_of("present", Labels(low=0, high=3, names=EMOTIONS))
    assert scheme.multilabel
    assert scheme.learnt == EMOTIONS
    assert scheme.convert(torch.tensor([[0.0, 1 / 3, 3.0]])).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        ("present", MOSI, "but the data have one score"),
        (7, SIMS, "classes=7: scores from -1 to 1 are cut into 2, 3, 5 classes"),
        (3, Labels(low=1, high=5), "cuts scores around 0, but the labels go from 1 to 5"),
        (5, Labels(names=EMOTIONS), "but the data have the targets joy, anger, fear"),
        ("sign", Labels(kind="classes", names=("a", "b")), "are classes already"),
    ],
)
def test_labels_that_cannot_become_that_are_refused(
    classes: Any, labels: Labels, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        scheme_of(classes, labels)


def weights_of(settings: ClassLoss, scheme: LabelScheme, label: torch.Tensor) -> Any:
    """What each label of a batch counts, where the same batch is the train split."""

    def train() -> Iterator[torch.Tensor]:
        yield label[:2]
        yield label[2:]

    weights = ClassWeights(settings, scheme, train)
    weights.prepare()
    size = len(label)
    batch = Utterances(torch.arange(size), torch.ones(size), 1 / size, label, {}, {}, {})
    return weights.on(batch)


CLASSES = scheme_of("sign", MOSI)
PRESENT = scheme_of("present", Labels(low=0, high=3, names=EMOTIONS))


def test_classes_count_by_their_shares() -> None:
    label = torch.tensor([0.0, 0, 0, 1, 1, 2])
    inverse = weights_of(ClassLoss(balance="inverse"), CLASSES, label).label_weight
    torch.testing.assert_close(inverse, torch.tensor([2 / 3] * 3 + [1, 1, 2]))
    torch.testing.assert_close(inverse.mean(), torch.tensor(1.0))
    root = weights_of(ClassLoss(balance="root"), CLASSES, label).label_weight
    torch.testing.assert_close(root, inverse.sqrt())
    stated = weights_of(ClassLoss(weights=(1, 2, 3), focal=2), CLASSES, label)
    assert stated.label_weight.tolist() == [1, 1, 1, 2, 2, 3]
    assert stated.label_loss == LabelLoss(focal=2)
    assert weights_of(ClassLoss(), CLASSES, label).label_weight is None


def test_having_a_label_counts_by_how_seldom_it_is() -> None:
    label = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]])
    found = weights_of(ClassLoss(balance="inverse"), PRESENT, label)
    weight = torch.tensor([3.0, 1 / 3, 1.0])
    torch.testing.assert_close(found.label_weight, torch.where(label > 0, weight, 1.0))
    assert found.label_loss.multilabel


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ClassLoss(weights=(1, 2)), "has 2 numbers for 3: negative, neutral, positive"),
        (ClassLoss(weights=(1, 2, 3), balance="root"), "both say how much classes count"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: ClassLoss, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClassWeights(settings, CLASSES, lambda: iter(()))
    with pytest.raises(ConfigError, match="scores are learnt"):
        ClassWeights(settings, scheme_of("given", MOSI), lambda: iter(()))


def test_a_class_without_samples_has_no_share() -> None:
    with pytest.raises(ConfigError, match="none of the 3 train samples is neutral"):
        weights_of(ClassLoss(balance="inverse"), CLASSES, torch.tensor([0.0, 2, 2]))


@pytest.fixture(scope="module")
def emotions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of intensities that the sound tells."""
    folder = tmp_path_factory.mktemp("emotions")
    rng = np.random.default_rng(0)
    values = np.maximum(rng.integers(-6, 10, (SAMPLES, 3)), 0) / 3
    np.save(folder / "audio.npy", values.astype(np.float32)[:, None].repeat(3, 1))
    np.save(folder / "vision.npy", rng.normal(size=(SAMPLES, 2, 4)).astype(np.float32))
    rows = []
    for number in range(SAMPLES):
        row = {
            "id": f"s{number}",
            "split": ("train", "train", "valid", "test")[number % 4],
            **dict(zip(EMOTIONS, values[number].tolist(), strict=True)),
            "tokens": [2, 5, 6, 3],
            "audio": f"audio.npy[{number}]",
            "vision": f"vision.npy[{number}]",
        }
        rows.append(row)
    options = Options(labels=Labels(low=0, high=3, resolution=1 / 3), targets=EMOTIONS)
    convert(write_json(rows, folder / "emotions.jsonl"), folder / "shards", options)
    return folder / "shards"


@pytest.fixture(scope="module")
def runs(
    emotions: Path, small_shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run of labels and one of seven classes, in one process."""
    folder = tmp_path_factory.mktemp("runs")
    labels, classes = folder / "labels", folder / "classes"
    small = small_words("baseline")
    of_labels = ["baseline/demo", f"data={emotions}", f"run_dir={labels}", "epochs=2"]
    of_labels += ["classes=present", "metrics=labels", "select=Macro_F1", "goal=max"]
    of_labels += ["class_loss.balance=root", "class_loss.focal=1", "batch_size=10", *small]
    of_classes = ["baseline/demo", f"data={small_shards}", f"run_dir={classes}", "epochs=1"]
    of_classes += ["classes=7", "metrics=classes", "select=Unweighted_acc", "goal=max", *small]
    train_in_turn(of_labels, of_classes)
    return labels, classes


def test_a_run_learns_labels_with_thresholds_of_validation(runs: tuple[Path, Path]) -> None:
    run_dir = runs[0]
    said = json.loads((run_dir / "scores.json").read_text())["test"]
    table = pd.read_csv(run_dir / "predictions.csv")
    label = table[[f"label_{name}" for name in EMOTIONS]].to_numpy()
    answer = table[[f"prediction_{name}" for name in EMOTIONS]].to_numpy()
    assert said == pytest.approx(multilabel.scores(answer, label, EMOTIONS))
    report = (run_dir / "report.md").read_text()
    assert "| label | F1 | Weighted_acc |" in report
    assert "Thresholds of the labels' probabilities, tuned on validation: joy 0." in report
    assert "(test_labels.png)" in report
    facts = json.loads((run_dir / "facts.json").read_text())
    assert facts["constant"]["test"]["all"].keys() == facts["constant"]["valid"]["none"].keys()


def test_a_run_of_seven_classes_reports_each(runs: tuple[Path, Path]) -> None:
    run_dir = runs[1]
    said = json.loads((run_dir / "scores.json").read_text())["test"]
    confusion = pd.read_csv(run_dir / "test_confusion.csv", index_col="true_class")
    counts = confusion.to_numpy()
    assert counts.shape == (7, 7)
    assert said["Accuracy"] == pytest.approx(counts.trace() / counts.sum())
    hits, total = counts[3, 3], counts[3].sum() + counts[:, 3].sum()
    assert said["0/F1"] == pytest.approx(2 * hits / total if total else 0)
    assert "| class | F1 | Recall |" in (run_dir / "report.md").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        ["metrics=labels"],
        ["classes=present", "metrics=phq"],
        ["classes=present", "metrics=classes", "select=Accuracy"],
    ],
)
def test_metrics_of_other_labels_are_refused(changes: list[str], emotions: Path) -> None:
    run = override(small_run("baseline", emotions, metrics="phq"), changes)
    with pytest.raises(ConfigError, match="metrics="):
        build_task(run)
