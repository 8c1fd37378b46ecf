"""Paired tests against SciPy, by hand and by what they must not do."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from launch.comparing.significance import (
    effect_size,
    holm,
    mean_and_deviation,
    mean_interval,
    permutation_p,
    smallest_p,
    wilcoxon_p,
)

SLEEP = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]  # Student 1908, first drug


def test_the_deviation_is_of_a_sample():
    mean, deviation = mean_and_deviation([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert deviation == pytest.approx(np.std([1.0, 2.0, 4.0], ddof=1))
    assert math.isnan(mean_and_deviation([1.0])[1])


def test_the_interval_is_students():
    low, high = mean_interval(SLEEP)
    known = stats.ttest_1samp(SLEEP, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((known.low, known.high))


def test_a_permutation_test_counts_every_swap():
    differences = [0.3, 0.1, -0.05, 0.4, 0.2]
    observed = abs(np.mean(differences))
    as_far = 0
    for signs in itertools.product([1, -1], repeat=len(differences)):
        as_far += abs(np.mean(np.multiply(signs, differences))) >= observed - 1e-12
    assert permutation_p(differences) == pytest.approx(as_far / 2 ** len(differences))


def test_of_many_pairs_permutations_are_drawn_alike_each_time():
    rng = np.random.default_rng(3)
    differences = rng.normal(0.4, 1.0, 30).tolist()
    assert permutation_p(differences) == permutation_p(differences)
    assert permutation_p(differences) == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue, abs=0.02
    )


def test_wilcoxon_is_scipys():
    differences = [1.1, 2.2, -0.3, 4.4, 5.1, 0.7]
    assert wilcoxon_p(differences) == stats.wilcoxon(differences).pvalue


@pytest.mark.parametrize("test", [permutation_p, wilcoxon_p])
def test_no_test_gives_less_than_its_pairs_allow(test):
    for pairs in (2, 3, 5, 8):
        same_direction = [1.0 + 0.1 * number for number in range(pairs)]
        assert test(same_direction) == pytest.approx(smallest_p(pairs))


@pytest.mark.parametrize("test", [permutation_p, wilcoxon_p])
def test_what_is_the_same_does_not_differ(test):
    assert test([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(test([0.5]))


def test_holm_steps_down_and_never_back():
    # the example of Aickin and Gensler (1996) in another order
    assert holm([0.02, 0.01, 0.04]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_holm_leaves_out_what_could_not_be_tested():
    corrected = holm([0.02, math.nan, 0.03])
    assert corrected[0] == pytest.approx(0.04)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


def test_the_effect_is_in_deviations_of_the_differences():
    assert effect_size(SLEEP) == pytest.approx(np.mean(SLEEP) / np.std(SLEEP, ddof=1))
    assert math.isnan(effect_size([0.2, 0.2]))
