"""Sentiment and classification scores: published conventions, golden values, degenerate cases."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from core.metrics import classification, regression
from core.metrics.f1 import f1


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def test_mosi_scores_are_those_of_the_reference_code() -> None:
    prediction = [-2.6, -1.5, -0.5, -0.2, 0, 0.4, 0.5, 1.5, 2.5, 3.7]
    label = [-3, -1, 0, -0.4, 0.6, 0, 1, 2.4, 2, 3]
    assert rounded(regression.scores(prediction, label, "mosi")) == {
        "MAE": 0.52,
        "Corr": 0.9503,
        "Mult_acc_7": 0.7,
        "Mult_acc_5": 0.7,
        "Has0_acc_2": 0.9,
        "Has0_F1": 0.9033,
        "Non0_acc_2": 0.875,
        "Non0_F1": 0.877,
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sims_scores_are_those_of_the_reference_code(dtype: type) -> None:
    """In both precisions: 0.1 and 0.7 lie on edges of the bins and must not slip over them."""
    prediction = np.array([-1.2, -0.71, -0.7, -0.1, 0, 0.1, 0.11, 0.7, 0.8, 1.3], dtype)
    label = np.array([-1, -0.8, -0.6, 0, 0.2, 0, -0.2, 0.8, 0.6, 1], dtype)
    found = regression.scores(prediction, label, "sims")
    assert rounded(found) | {"F1_score": round(found["F1_score"], 3)} == {
        "MAE": 0.12,
        "Corr": 0.9733,
        "Mult_acc_2": 0.7,
        "Mult_acc_3": 0.7,
        "Mult_acc_5": 0.4,
        "F1_score": 0.703,
    }


def test_rounding_is_half_to_even() -> None:
    halves = np.array([0.5, 1.5, 2.5])
    assert regression.scores(halves, np.array([0.0, 2.0, 2.0]), "mosi")["Mult_acc_7"] == 1


def test_zero_is_non_negative_in_mosi_and_negative_in_sims() -> None:
    zero, positive = np.zeros(4), np.array([0.2, 0.4, 0.6, 1.0])
    assert regression.scores(zero, positive, "mosi")["Has0_acc_2"] == 1
    assert regression.scores(zero, positive, "sims")["Mult_acc_2"] == 0


@pytest.mark.parametrize(
    ("negative", "zero", "positive", "constant", "expected"),
    [
        (379, 30, 277, "negative", (55.25, 39.32, 57.77, 42.31)),  # MOSI's test split
        (1350, 1025, 2284, "positive", (71.02, 58.99, 62.85, 48.51)),  # MOSEI's
    ],
)
def test_constant_answers_score_the_published_floors(
    negative: int, zero: int, positive: int, constant: str, expected: tuple[float, ...]
) -> None:
    label = np.repeat([-1.0, 0.0, 1.0], [negative, zero, positive])
    found = regression.constant_baselines(label, "mosi")[constant]
    names = ("Has0_acc_2", "Has0_F1", "Non0_acc_2", "Non0_F1")
    assert tuple(round(100 * found[name], 2) for name in names) == expected


def test_the_floor_of_sims_is_the_published_one() -> None:
    label = np.repeat([-0.4, 0.4], [317, 140])
    found = regression.constant_baselines(label, "sims")["negative"]
    assert round(100 * found["Mult_acc_2"], 2) == 69.37
    assert round(100 * found["F1_score"], 2) == 56.82


def test_phq_scores_match_their_definitions() -> None:
    rng = np.random.default_rng(0)
    label = rng.uniform(0, 24, 56)
    prediction = 0.6 * label + rng.normal(0, 3, 56) + 2
    found = regression.scores(prediction, label, "phq")
    covariance = np.cov(prediction, label, bias=True)
    wanted = (
        2
        * covariance[0, 1]
        / (covariance[0, 0] + covariance[1, 1] + (prediction.mean() - label.mean()) ** 2)
    )
    np.testing.assert_allclose(found["CCC"], wanted)
    np.testing.assert_allclose(found["Corr"], np.corrcoef(prediction, label)[0, 1])
    np.testing.assert_allclose(found["RMSE"], np.linalg.norm(prediction - label) / np.sqrt(56))
    assert regression.scores(label, label, "phq")["CCC"] == pytest.approx(1)


def test_a_constant_prediction_has_no_correlation_and_is_called_collapsed() -> None:
    label = np.linspace(-3, 3, 11)
    found = regression.scores(np.full(11, 0.3), label, "mosi")
    assert found["Corr"] == 0
    warning = regression.collapsed(np.full(11, 0.3), label, "mosi")
    assert warning is not None
    assert "hardly differ" in warning
    assert regression.collapsed(label + 0.1, label, "mosi") is None


def test_answers_on_one_side_only_are_called_collapsed() -> None:
    label = np.linspace(-3, 3, 10)
    warning = regression.collapsed(label / 10 - 1, label, "mosi")
    assert warning is not None
    assert "negative or zero" in warning


def test_one_sample_is_scored() -> None:
    found = regression.scores([0.5], [0.0], "mosi")
    assert found["MAE"] == 0.5
    assert found["Corr"] == found["Non0_acc_2"] == found["Non0_F1"] == 0
    assert regression.collapsed([0.5], [0.0], "mosi") is None


@pytest.mark.parametrize(
    ("prediction", "label", "style", "message"),
    [
        ([0.0], [0.0], "avec", "unknown metric style 'avec'"),
        ([0.0, np.nan], [0.0, 1.0], "mosi", "prediction 1 of 2 is nan"),
        ([0.0], [0.0, 1.0], "mosi", "as many predictions as labels"),
        ([], [], "mosi", "as many predictions as labels"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    prediction: list, label: list, style: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        regression.scores(prediction, label, style)


def test_classification_scores_match_a_naive_count() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    f1 = []
    for one in range(4):  # class 3 never occurs: its F1 is 0 and it counts in the plain mean
        hit = ((predicted == one) & (truth == one)).sum()
        f1.append(2 * hit / max((predicted == one).sum() + (truth == one).sum(), 1))
    found = classification.scores(predicted, truth.astype(np.float32), 4)
    assert found["Accuracy"] == pytest.approx((predicted == truth).mean())
    assert found["Macro_F1"] == pytest.approx(np.mean(f1))
    logits = np.eye(4)[predicted]
    assert classification.scores(logits, truth, 4) == found


def test_classification_refuses_what_is_no_class() -> None:
    with pytest.raises(ValueError, match="label 1 is 4"):
        classification.scores([0, 1], [0, 4], 3)
    with pytest.raises(ValueError, match="label 0 is 0.5"):
        classification.scores([0, 1], [0.5, 1], 3)


def test_one_class_for_all_is_called_collapsed() -> None:
    warning = classification.collapsed([1, 1, 1], [0, 1, 1], 3)
    assert warning is not None
    assert "Accuracy 0.6667" in warning
    assert classification.collapsed([1, 0, 1], [0, 1, 1], 3) is None


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_f1_is_that_of_scikit_learn_to_the_bit(average: Literal["macro", "weighted"]) -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    for size in range(1, 40):
        truth, answer = rng.integers(0, 5, (2, size))
        for classes in (None, np.arange(6)):
            wanted = f1_score(truth, answer, labels=classes, average=average, zero_division=0)
            assert f1(truth, answer, average, classes) == wanted
        wanted = f1_score(truth > 2, answer > 2, average=average, zero_division=0)
        assert f1(truth > 2, answer > 2, average) == wanted
