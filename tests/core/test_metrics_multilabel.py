"""Scores of classes and of several labels, by small tables counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from core.command import Refused
from core.metrics import classification, multilabel
from core.metrics.declared import metric_of, shown_metrics

NAMES = ("joy", "fear")
LABEL = np.array([[1, 0], [1, 0], [0, 0], [0, 1]])
CHANCE = np.array([[0.9, 0.1], [0.2, 0.6], [0.3, 0.2], [0.1, 0.4]])


def test_scores_of_labels_are_those_counted_by_hand() -> None:
    found = multilabel.scores(CHANCE, LABEL, NAMES)
    assert found["joy/F1"] == pytest.approx(2 / 3)  # one hit, one missed
    assert found["fear/F1"] == 0  # one wrong answer, one missed
    assert found["joy/Weighted_acc"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["fear/Weighted_acc"] == pytest.approx((0 + 2 / 3) / 2)
    assert found["Macro_F1"] == pytest.approx(1 / 3)
    assert found["Micro_F1"] == pytest.approx(2 * 1 / (3 + 2))
    assert found["Weighted_F1"] == pytest.approx((2 / 3 * 2 + 0 * 1) / 3)
    assert found["Subset_acc"] == 0.5
    assert found["Hamming"] == pytest.approx(3 / 8)
    assert list(found)[:6] == shown_metrics("labels")
    assert all(metric_of(name).name in name for name in found)


def test_thresholds_are_the_best_of_their_label() -> None:
    thresholds = multilabel.tuned_thresholds(CHANCE, LABEL)
    assert thresholds[1] == pytest.approx(0.3)  # between 0.4 and 0.2: two answered, one right
    best = multilabel.scores(CHANCE, LABEL, NAMES, thresholds)
    for number, name in enumerate(NAMES):
        for other in np.linspace(0, 1, 41):
            changed = thresholds.copy()
            changed[number] = other
            scores = multilabel.scores(CHANCE, LABEL, NAMES, changed)
            assert scores[f"{name}/F1"] <= best[f"{name}/F1"] + 1e-12


def test_a_label_that_nobody_has_keeps_one_half_and_ties_go_together() -> None:
    nobody = np.zeros((4, 1))
    assert multilabel.tuned_thresholds(CHANCE[:, :1], nobody) == [0.5]
    tied = np.array([[0.6], [0.6], [0.2]])
    (threshold,) = multilabel.tuned_thresholds(tied, np.array([[1], [0], [0]]))
    assert threshold == pytest.approx(0.4)


def test_what_is_no_label_and_what_diverged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label 1 is \[2.0, 0.0\]; labels are 1 or 0"):
        multilabel.scores(CHANCE[:2], [[0, 1], [2, 0]], NAMES)
    with pytest.raises(ValueError, match=r"got \(4, 2\) for \(4,\)"):
        multilabel.scores(CHANCE, LABEL[:, 0], NAMES)
    with pytest.raises(Refused, match="prediction 2 of 4 is not finite"):
        multilabel.scores(np.where(CHANCE == 0.3, np.nan, CHANCE), LABEL, NAMES)


def test_a_label_answered_the_same_for_all_is_named() -> None:
    answer = np.array([[True, False]] * 4)
    warnings = multilabel.collapses(answer, LABEL, NAMES)
    assert warnings[0].startswith("joy: the model has collapsed: all of 4 samples")
    assert warnings[1].startswith("fear: the model has collapsed: none of 4 samples")
    assert multilabel.collapses(LABEL > 0, LABEL, NAMES) == []
    always = multilabel.constant_baselines(LABEL, NAMES)
    assert always["all"]["joy/F1"] == pytest.approx(2 / 3)
    assert always["none"]["Macro_F1"] == 0


def test_classes_have_accuracies_f1_recall_and_a_confusion() -> None:
    label, answer = [0, 0, 0, 1, 2], [0, 0, 1, 1, 1]
    found = classification.scores(answer, label, 4)
    assert found["Accuracy"] == pytest.approx(3 / 5)
    assert found["Unweighted_acc"] == pytest.approx((2 / 3 + 1 + 0) / 3)  # of those that occur
    by_class = classification.class_scores(answer, label, ("a", "b", "c", "d"))
    assert by_class["a/F1"] == pytest.approx(4 / 5)
    assert by_class["b/F1"] == pytest.approx(2 / 4)
    assert by_class["d/F1"] == by_class["d/Recall"] == 0
    assert by_class["a/Recall"] == pytest.approx(2 / 3)
    counts = classification.confusion(answer, label, 3)
    assert counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 1, 0]]
