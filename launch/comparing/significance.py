"""Whether two ways to train differ by more than chance: paired tests over seeds, their correction,
sizes of effects.

Pairs are runs with the same seed: what a seed decides (first weights, order, dropout) is then the
same on both sides, and only the difference within each pair counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
MOST_EXACT = 14  # pairs; with more of them the permutations are drawn
DRAWN = 20_000  # permutations


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the sample standard deviation (n - 1); nan for the latter of a single value."""
    array = np.asarray(values, np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return float(array.mean()), deviation


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the mean of all seeds with this confidence, by Student's t; nan for a
    single value."""
    mean, deviation = mean_and_deviation(values)
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf(0.5 + level / 2, count - 1)) * deviation / math.sqrt(count)
    return mean - half, mean + half


def permutation_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean difference when every pair may as well be swapped.

    All 2^n swaps are taken where there are few, and drawn ones (with one generator, always the
    same) where there are many. nan for fewer than two pairs.
    """
    array = np.asarray(differences, np.float64)
    if len(array) < 2:
        return math.nan
    if not array.any():
        return 1.0
    is_exact = len(array) <= MOST_EXACT
    found = stats.permutation_test(
        (array,),
        np.mean,
        permutation_type="samples",
        n_resamples=np.inf if is_exact else DRAWN,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed rank test; pairs without a difference are left out. nan for
    fewer than two pairs."""
    array = np.asarray(differences, np.float64)
    if len(array) < 2:
        return math.nan
    if not array.any():
        return 1.0
    return float(stats.wilcoxon(array, zero_method="wilcox").pvalue)


TESTS = {"permutation": permutation_p, "wilcoxon": wilcoxon_p}


def smallest_p(pairs: int) -> float:
    """The least that either test can give for so many pairs: both directions of 2^n swaps."""
    return min(1.0, 2.0 / 2.0**pairs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): each p with regard to all tests of one family.

    nan stands for a test that could not be made; it stays nan and counts for nothing.
    """
    corrected = [math.nan] * len(p_values)
    made = [number for number, p in enumerate(p_values) if not math.isnan(p)]
    largest = 0.0
    for rank, number in enumerate(sorted(made, key=lambda index: p_values[index])):
        largest = max(largest, p_values[number] * (len(made) - rank))
        corrected[number] = min(1.0, largest)
    return corrected


def effect_size(differences: Sequence[float]) -> float:
    """Cohen's d of pairs (d_z): the mean difference in standard deviations of the differences.

    nan for fewer than two pairs, and where all differences are the same.
    """
    if len(differences) < 2:
        return math.nan
    mean, deviation = mean_and_deviation(differences)
    return mean / deviation if deviation > 0 else math.nan
