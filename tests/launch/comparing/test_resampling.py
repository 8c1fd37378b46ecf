"""Scores under weights are the scores of the samples drawn, and intervals hold what they claim."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from core.metrics import classification, regression
from core.metrics.weighted import weighted_score
from launch.comparing.resampling import (
    Answers,
    difference_interval,
    drawn_scores,
    draws,
    matches_record,
    score_interval,
)

RANGES = {"mosi": (-3, 3), "sims": (-1, 1), "phq": (0, 24), "mmmo": (1, 5)}


def some(style: str, count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    low, high = RANGES[style]
    label = np.round(rng.uniform(low, high, count), 1)
    label[:4] = 0.0 if low < 0 else low
    prediction = label + rng.normal(0, (high - low) / 6, count)
    return prediction, label


@pytest.mark.parametrize("style", RANGES)
def test_with_one_of_each_sample_the_scores_are_those_of_the_tables(style: str):
    prediction, label = some(style)
    known = regression.scores(prediction, label, style)
    once = np.ones((1, len(label)))
    for name, value in known.items():
        found = weighted_score(name, prediction, label, style, once)
        assert found is not None, name
        assert found[0] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("style", RANGES)
def test_a_draw_scores_as_its_samples_do(style: str):
    prediction, label = some(style)
    rng = np.random.default_rng(1)
    taken = rng.integers(0, len(label), len(label))
    weights = np.bincount(taken, minlength=len(label)).astype(float)[None]
    known = regression.scores(prediction[taken], label[taken], style)
    for name, value in known.items():
        found = weighted_score(name, prediction, label, style, weights)
        assert found is not None
        assert found[0] == pytest.approx(value, abs=1e-12), name


def test_classes_too():
    rng = np.random.default_rng(2)
    label, prediction = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    taken = rng.integers(0, 50, 50)
    weights = np.bincount(taken, minlength=50).astype(float)[None]
    known = classification.scores(prediction[taken], label[taken], 3)
    for name, value in known.items():
        found = weighted_score(
            name, prediction.astype(float), label.astype(float), "classes", weights
        )
        assert found is not None
        assert found[0] == pytest.approx(value), name


def test_ranks_of_alignment():
    rank = np.array([1.0, 2, 11, 60, 1])
    answers = Answers(("a", "b", "c", "d", "e"), rank, np.ones(5), "alignment")
    assert matches_record(answers, "Hits@1", 0.4)
    assert matches_record(answers, "Hits@10", 0.6)
    assert matches_record(answers, "MRR", float((1 / rank).mean()))
    assert not matches_record(answers, "Hits@1", 0.5)


def answers(style: str = "mosi", count: int = 200, seed: int = 0, off: float = 0.0) -> Answers:
    prediction, label = some(style, count, seed)
    ids = tuple(map(str, range(count)))
    return Answers(ids, prediction + off, label, style)


def test_the_interval_of_a_mean_is_the_normal_one():
    one = answers(count=400)
    error = np.abs(one.prediction - one.label)
    found = score_interval(one, "MAE", float(error.mean()))
    assert found is not None
    half = stats.norm.ppf(0.975) * error.std() / 20
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_a_score_of_other_answers_has_no_interval():
    assert score_interval(answers(), "MAE", 0.123) is None


def test_differences_are_taken_within_each_draw():
    one, other = answers(), answers(off=0.01)
    found = difference_interval([one], [other], "Corr", 0.0)
    assert found is not None
    assert abs(found.low) < 1e-9  # a shift changes no correlation, whatever is drawn
    assert abs(found.high) < 1e-9


def test_runs_of_other_samples_have_no_difference():
    one, other = answers(count=50), answers(count=40)
    assert difference_interval([one], [other], "MAE", 0.1) is None


def test_draws_are_always_the_same_and_of_the_same_size():
    assert (draws(30, 10).sum(1) == 30).all()
    assert (draws(30, 10) == draws(30, 10)).all()


def test_what_no_answers_tell_has_no_value():
    one = answers()
    assert drawn_scores(one, "csls/Hits@1", np.ones((1, 200))) is None
    assert drawn_scores(one, "CCC_of_something", np.ones((1, 200))) is None
