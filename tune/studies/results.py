"""What the finished runs of a study say: a mean and a spread for each cell, and how each row differs
from the baseline."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from core.metrics.declared import METRICS, metric_of, shown_metrics
from launch.comparing.resampling import (
    Answers,
    answers_of,
    difference_interval,
    matches_record,
)
from launch.comparing.significance import (
    TESTS,
    effect_size,
    holm,
    mean_and_deviation,
    mean_interval,
)
from launch.reports.run_record import RunRecord, is_finished, read_run
from tune.studies.plan import Study, StudyRun

Place = tuple[str, str]  # data, value of what is varied


@dataclass(frozen=True)
class Cell:
    """One row's scores by one metric, on one data set under one value."""

    row: str
    data: str
    value: str
    metric: str
    seeds: tuple[int, ...]
    scores: tuple[float, ...]  # of each seed
    mean: float
    deviation: float  # sample standard deviation over seeds; nan for one
    low: float  # of the mean, with 95 % confidence, over seeds
    high: float
    # against the baseline, over the seeds that both have; nan where it cannot be said
    difference: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    effect: float = math.nan  # Cohen's d of pairs
    difference_low: float = math.nan  # of the difference, by the bootstrap over samples
    difference_high: float = math.nan
    is_best: bool = False

    @property
    def higher_is_better(self) -> bool:
        return metric_of(self.metric).higher_is_better


@dataclass(frozen=True)
class Results:
    """A study as far as its runs have come."""

    study: Study
    split: str
    metrics: tuple[str, ...]
    cells: tuple[Cell, ...]
    finished: tuple[StudyRun, ...]
    missing: tuple[StudyRun, ...]
    records: dict[str, RunRecord] = field(default_factory=dict)  # folder -> what it holds

    def cell(self, row: str, place: Place, metric: str) -> Cell | None:
        for one in self.cells:
            if (one.row, (one.data, one.value), one.metric) == (row, place, metric):
                return one
        return None

    def places(self) -> list[Place]:
        return [(data, value) for data in self.study.data for value in self.study.values()]


def collect(study: Study) -> Results:
    """Read every finished run of a study.

    Raises:
        ConfigError: a file of a run cannot be read, or it is of other settings.
    """
    finished, missing = [], []
    records: dict[str, RunRecord] = {}
    for one in study.runs():
        if is_finished(one.folder):
            finished.append(one)
            records[str(one.folder)] = read_run(one.folder)
        else:
            missing.append(one)
    everything = list(records.values())
    split = "test" if all("test" in record.scores for record in everything) else "valid"
    metrics = _metrics(study, everything, split)
    cells = _cells(study, finished, records, split, metrics)
    return Results(study, split, metrics, tuple(cells), tuple(finished), tuple(missing), records)


def _metrics(study: Study, records: Sequence[RunRecord], split: str) -> tuple[str, ...]:
    """Those asked for, else those that every run has, in the order of its own tables."""
    if not records:
        return study.metrics
    everyone = [
        name
        for name in records[0].scores[split]
        if all(name in one.scores[split] for one in records)
    ]
    if study.metrics:
        return tuple(name for name in study.metrics if name in everyone)
    usual = [name for name in shown_metrics(records[0].style) if name in everyone]
    return tuple(usual or [name for name in everyone if name in METRICS])


def _cells(
    study: Study,
    finished: Sequence[StudyRun],
    records: dict[str, RunRecord],
    split: str,
    metrics: Sequence[str],
) -> list[Cell]:
    by_row: dict[tuple[str, Place], dict[int, RunRecord]] = defaultdict(dict)
    for one in finished:
        by_row[one.row, (one.data, one.value)][one.seed] = records[str(one.folder)]
    cells = []
    for metric in metrics:
        for data in study.data:
            for value in study.values():
                place = (data, value)
                rows = {row.name: by_row.get((row.name, place), {}) for row in study.rows}
                cells += _compared(study, place, metric, rows, split)
    return cells


def _compared(
    study: Study, place: Place, metric: str, rows: dict[str, dict[int, RunRecord]], split: str
) -> list[Cell]:
    """The cells of one metric at one place; these comparisons are one family for Holm."""
    found: list[Cell] = []
    base = rows[study.baseline]
    for row, runs in rows.items():
        if runs:
            found.append(_cell(study, place, metric, (row, runs), base, split))
    corrected = holm([cell.p for cell in found])
    best = metric_of(metric).best(cell.mean for cell in found) if found else math.nan
    cells = []
    for cell, p_holm in zip(found, corrected, strict=True):
        values = vars(cell) | {"p_holm": p_holm, "is_best": cell.mean == best}
        cells.append(Cell(**values))
    return cells


def _cell(
    study: Study,
    place: Place,
    metric: str,
    named: tuple[str, dict[int, RunRecord]],
    base: dict[int, RunRecord],
    split: str,
) -> Cell:
    row, runs = named
    seeds = tuple(sorted(runs))
    scores = tuple(runs[seed].scores[split][metric] for seed in seeds)
    mean, deviation = mean_and_deviation(scores)
    low, high = mean_interval(scores)
    cell = Cell(row, *place, metric, seeds, scores, mean, deviation, low, high)
    shared = [seed for seed in seeds if seed in base]
    if row == study.baseline or not shared:
        return cell
    differences = [
        runs[seed].scores[split][metric] - base[seed].scores[split][metric] for seed in shared
    ]
    difference, _ = mean_and_deviation(differences)
    interval = None
    ours = _answers([runs[seed] for seed in shared], metric, split)
    theirs = _answers([base[seed] for seed in shared], metric, split)
    if ours and theirs:
        interval = difference_interval(ours, theirs, metric, difference)
    values = vars(cell) | {
        "difference": difference,
        "p": TESTS[study.test](differences),
        "effect": effect_size(differences),
        "difference_low": interval.low if interval else math.nan,
        "difference_high": interval.high if interval else math.nan,
    }
    return Cell(**values)


def _answers(records: Sequence[RunRecord], metric: str, split: str) -> list[Answers]:
    """Of every run; none at all where those of one do not give its recorded score again."""
    found = []
    for record in records:
        answers = answers_of(record.predictions, record.style)
        is_of_split = record.last_split == split
        if not is_of_split or answers is None:
            return []
        if not matches_record(answers, metric, record.scores[split][metric]):
            return []
        found.append(answers)
    return found
