"""Intervals of scores by the bootstrap over the samples of a split, for one way to train or for the
difference of two.

The same draws serve every run, so that a difference is taken within each draw: samples that are
hard for all of them do not widen its interval. Of several seeds the mean of the scores counts, so
the interval is about the samples; that of the seeds is another (``significance``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.metrics.declared import METRICS
from core.metrics.weighted import weighted_score

Array = NDArray[np.float64]
DRAWS = 2000
AGREES = 1e-5  # how near a score computed here must be to the one that the run recorded


@dataclass(frozen=True)
class Answers:
    """The predictions of one run."""

    ids: tuple[str, ...]
    prediction: Array  # (N,) scores, class numbers, or ranks of the right partner
    label: Array  # (N,)
    style: str


@dataclass(frozen=True)
class Interval:
    """A value, and where 95 % of the draws lie."""

    value: float
    low: float
    high: float


def answers_of(table: Any, style: str) -> Answers | None:
    """The answers in a ``predictions.csv``; None where there is no table, or one of several
    targets."""
    if table is None or "id" not in table or "prediction" not in table or "label" not in table:
        return _ranks_of(table)
    prediction, label = table["prediction"], table["label"]
    if style == "classes":
        names = sorted({*map(str, prediction), *map(str, label)})
        numbers = {name: number for number, name in enumerate(names)}
        prediction = [numbers[str(name)] for name in prediction]
        label = [numbers[str(name)] for name in label]
    try:
        found = np.asarray(prediction, np.float64), np.asarray(label, np.float64)
    except (TypeError, ValueError):
        return None
    return Answers(tuple(map(str, table["id"])), *found, style)


def _ranks_of(table: Any) -> Answers | None:
    if table is None or "rank" not in table or "left" not in table:
        return None
    rank = np.asarray(table["rank"], np.float64)
    return Answers(tuple(map(str, table["left"])), rank, np.ones_like(rank), "alignment")


@lru_cache(maxsize=2)
def draws(count: int, number: int = DRAWS) -> Array:
    """(number, count) how often each sample occurs in each draw, always the same."""
    generator = np.random.default_rng(0)
    return generator.multinomial(count, np.full(count, 1 / count), number).astype(np.float64)


def drawn_scores(answers: Answers, name: str, weights: Array) -> Array | None:
    """(draws,) values of a score; None where it cannot be computed from the answers alone."""
    if name not in METRICS:
        return None  # a variant with a prefix
    if answers.style != "alignment":
        return weighted_score(name, answers.prediction, answers.label, answers.style, weights)
    rank = answers.prediction
    if name.startswith("Hits@"):
        counted = (rank <= int(name.removeprefix("Hits@"))).astype(np.float64)
    elif name in ("MR", "MRR"):
        counted = rank if name == "MR" else 1 / rank
    else:
        return None
    return weights @ counted / weights.sum(1)


def matches_record(answers: Answers, name: str, recorded: float) -> bool:
    """Whether the answers give the score that the run recorded: else they are of something else."""
    once = drawn_scores(answers, name, np.ones((1, len(answers.label))))
    return once is not None and abs(float(once[0]) - recorded) < AGREES


def interval(values: Array, value: float) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def score_interval(answers: Answers, name: str, recorded: float) -> Interval | None:
    """The interval of one run's score; None where it cannot be known."""
    if not matches_record(answers, name, recorded):
        return None
    values = drawn_scores(answers, name, draws(len(answers.label)))
    assert values is not None
    return interval(values, recorded)


def difference_interval(
    ours: list[Answers], others: list[Answers], name: str, difference: float
) -> Interval | None:
    """The interval of the difference of two means over runs; None where their samples differ.

    Args:
        difference: of the means of the recorded scores.
    """
    samples = {answers.ids for answers in [*ours, *others]}
    if len(samples) != 1 or not ours or not others:
        return None
    weights = draws(len(ours[0].label))
    means = []
    for side in (ours, others):
        values = [drawn_scores(answers, name, weights) for answers in side]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        means.append(np.mean(known, axis=0))
    return interval(means[0] - means[1], difference)
