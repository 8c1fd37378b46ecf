"""The one list of metrics: it names what the functions compute, and says which direction is
better."""

from __future__ import annotations

import numpy as np
import pytest

from core.metrics import classification, ranking, regression
from core.metrics.declared import (
    METRICS,
    headline_metrics,
    metric_of,
    score_text,
    shown_metrics,
)

LABEL = np.array([-1.0, 0.0, 1.0, 2.0])
RIGHT, WRONG = LABEL, LABEL[::-1]


@pytest.mark.parametrize("style", ["mosi", "sims", "phq", "mmmo"])
def test_a_style_shows_what_is_computed_and_right_answers_are_better(style: str) -> None:
    right = regression.scores(RIGHT, LABEL, style)
    wrong = regression.scores(WRONG, LABEL, style)
    assert list(right) == shown_metrics(style)
    for name in right:
        assert METRICS[name].best([right[name], wrong[name]]) == right[name] != wrong[name]


def test_classes_and_ranks_are_declared_too() -> None:
    classes = np.array([0, 1, 2])
    assert list(classification.scores(classes, classes)) == shown_metrics("classes")
    first, last = ranking.summary(np.array([1, 1])), ranking.summary(np.array([60, 80]))
    assert list(first) == shown_metrics("alignment")
    for name in first:
        assert METRICS[name].best([first[name], last[name]]) == first[name] != last[name]


def test_headlines_are_few_and_in_order_of_importance() -> None:
    assert headline_metrics(shown_metrics("phq")) == ["MAE", "Corr", "CCC"]
    assert headline_metrics(["all/MRR", "MRR", "MR", "Hits@1"]) == ["Hits@1", "MRR"]


def test_prefixes_do_not_hide_a_metric() -> None:
    assert metric_of("csls/r2l/Hits@1") is METRICS["Hits@1"]
    assert score_text("all/MRR", 0.25) == "all/MRR 0.2500"
    with pytest.raises(KeyError):
        metric_of("accuracy")
    with pytest.raises(ValueError, match="unknown metric style 'mosei'; there are: mosi, sims"):
        shown_metrics("mosei")
