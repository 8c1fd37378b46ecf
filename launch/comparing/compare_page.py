"""The sections of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from core.metrics.declared import METRICS, headline_metrics, metric_of
from launch.comparing.differences import SharedAnswers, different_settings, shared_answers
from launch.comparing.resampling import (
    Interval,
    answers_of,
    difference_interval,
    matches_record,
    score_interval,
)
from launch.reports.pages.answer_sections import confusion_table
from launch.reports.pages.charts import Chart, Series, line_chart, scatter_chart
from launch.reports.pages.page import Cell, Section, Table
from launch.reports.run_record import RunRecord, is_score

MOST_DIFFERENT = 20
MOST_DRAWN = 1500
MOST_POINTS = 12  # of a scale whose points are classes of the confusion


def compare_sections(records: Sequence[RunRecord], names: Sequence[str]) -> list[Section]:
    """All that the files of the runs have something for; the settings first."""
    shared = shared_answers(records)
    return [
        _settings(records, names),
        _scores(records, names),
        _curves(records, names),
        _answers(shared, names),
        _confusions(shared, names),
    ]


def _settings(records: Sequence[RunRecord], names: Sequence[str]) -> Section:
    different = different_settings(records)
    if not different:
        return Section("Settings", "All settings are the same in these runs.")
    header = ["setting", *names]
    rows = [[name, *values] for name, values in different]
    table = Table("Settings that are not the same", header, rows, header)
    return Section("Settings", "", [table], notes=["From config.json of each run."])


def _split_of(records: Sequence[RunRecord]) -> str:
    return "test" if all("test" in record.scores for record in records) else "valid"


def score_lines(
    records: Sequence[RunRecord], names: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the scores of all runs that have some: value and interval."""
    split = _split_of(records)
    scored = [
        (name, one) for name, one in zip(names, records, strict=True) if one.scores.get(split)
    ]
    if not scored:
        return [], []
    metrics = [
        metric
        for metric in scored[0][1].scores[split]
        if metric in METRICS and all(metric in one.scores[split] for _, one in scored)
    ]
    rows = []
    for name, record in scored:
        cells = []
        for metric in metrics:
            value = record.scores[split][metric]
            found = _interval(record, metric, value, split)
            text = metric_of(metric).text(value)
            if found is not None:
                text += f" [{found.low:.3f}, {found.high:.3f}]"
            cells.append(text)
        rows.append([name, *cells])
    heads = [f"{name} {'↑' if metric_of(name).higher_is_better else '↓'}" for name in metrics]
    return [f"run, {split}", *heads], rows


def _interval(record: RunRecord, metric: str, value: float, split: str) -> Interval | None:
    answers = answers_of(record.predictions, record.style)
    if answers is None or record.last_split != split:
        return None
    return score_interval(answers, metric, value)


def _scores(records: Sequence[RunRecord], names: Sequence[str]) -> Section:
    header, lines = score_lines(records, names)
    if not lines:
        return Section("Scores", "None of these runs is finished yet.")
    best: list[list[Cell | str]] = [[*line] for line in lines]
    for column in range(1, len(header)):
        values = [float(line[column].split(" ")[0]) for line in lines]
        metric = METRICS[header[column].split(" ")[0]]
        for number, value in enumerate(values):
            best[number][column] = Cell(lines[number][column], best=value == metric.best(values))
    tables = [Table("Scores, with 95 % intervals over samples", header, best)]
    rows = _difference_rows(records, names)
    if rows:
        head = ["run", "score", f"minus {names[0]}", "95 % over samples", "says"]
        tables.append(Table(f"Differences from {names[0]}", head, rows, ["score", "says"]))
    text = (
        "The intervals are of drawing the samples anew (bootstrap, 2,000 draws, the same for all "
        "runs); they say nothing about other seeds: a study does."
    )
    return Section("Scores", text, tables, notes=["From scores.json and predictions.csv."])


def _difference_rows(records: Sequence[RunRecord], names: Sequence[str]) -> list[list[Cell | str]]:
    split = _split_of(records)
    first = records[0]
    base = answers_of(first.predictions, first.style)
    if base is None or split not in first.scores:
        return []
    rows: list[list[Cell | str]] = []
    for name, record in zip(names[1:], records[1:], strict=True):
        ours = answers_of(record.predictions, record.style)
        if ours is None or split not in record.scores:
            continue
        for metric in headline_metrics(record.scores[split]):
            values = [one.scores[split].get(metric, math.nan) for one in (record, first)]
            known = [
                matches_record(answers, metric, value)
                for answers, value in zip((ours, base), values, strict=True)
                if not math.isnan(value)
            ]
            if known != [True, True]:
                continue
            found = difference_interval([ours], [base], metric, values[0] - values[1])
            if found is not None:
                rows.append([name, metric, *_difference_cells(metric, found)])
    return rows


def _difference_cells(metric: str, found: Interval) -> list[str]:
    if found.low <= 0 <= found.high:
        says = "may be chance"
    else:
        is_better = (found.value > 0) == metric_of(metric).higher_is_better
        says = "better" if is_better else "worse"
    return [f"{found.value:+.4f}", f"{found.low:+.3f} … {found.high:+.3f}", says]


def _curves(records: Sequence[RunRecord], names: Sequence[str]) -> Section:
    """Validation scores and the summed losses of all runs over each other."""
    charts: list[Chart] = []
    known = [set(record.epochs[-1]) for record in records if record.epochs]
    if not known:
        return Section("Curves")
    scores = [name for name in records[0].epochs[-1] if is_score(name)] if records[0].epochs else []
    everywhere = [name for name in scores if all(name in keys for keys in known)]
    shown = list(dict.fromkeys([records[0].select, *headline_metrics(everywhere)]))
    for metric in [metric for metric in shown if metric in everywhere]:
        charts.append(_curve(f"Validation {metric}", metric, records, names))
    losses = sorted({key for keys in known for key in keys if key.startswith("loss_")})
    for loss in losses:
        charts.append(_curve(f"Training loss {loss.removeprefix('loss_')}", loss, records, names))
    return Section("Curves", "", charts=charts, notes=["From log.jsonl of each run."])


def _curve(title: str, key: str, records: Sequence[RunRecord], names: Sequence[str]) -> Chart:
    series = []
    for name, record in zip(names, records, strict=True):
        events = [event for event in record.epochs if key in event]
        if events:
            x = [float(event["epoch"] + 1) for event in events]
            series.append(Series(name, x, [float(event[key]) for event in events]))
    return line_chart(title, series, "epoch", key.removeprefix("loss_"))


def _answers(shared: SharedAnswers | None, names: Sequence[str]) -> Section:
    """Where the runs disagree: the most different samples, and the first two against each other."""
    if shared is None:
        return Section("Answers against each other")
    order = np.argsort(-shared.apart, kind="stable")[:MOST_DIFFERENT]
    rows: list[list[Cell | str]] = []
    for number in order:
        said = [f"{value:+.2f}" for value in shared.prediction[:, number]]
        nearest = int(np.abs(shared.prediction[:, number] - shared.label[number]).argmin())
        cells: list[Cell | str] = [
            Cell(text, best=place == nearest) for place, text in enumerate(said)
        ]
        transcript = [shared.texts[number]] if shared.texts else []
        rows.append([shared.ids[number], f"{shared.label[number]:+.2f}", *cells, *transcript])
    header = ["sample", "true", *names, *(["transcript"] if shared.texts else [])]
    table = Table("Samples on which the runs disagree most", header, rows, ["transcript"])
    drawn = np.linspace(0, len(shared.ids) - 1, min(len(shared.ids), MOST_DRAWN)).astype(int)
    one, other = shared.prediction[0, drawn], shared.prediction[1, drawn]
    notes = [f"{shared.ids[n]}: true {shared.label[n]:.2f}" for n in drawn]
    points = Series(f"{len(shared.ids)} samples", one.tolist(), other.tolist(), (), notes)
    chart = scatter_chart(
        f"{names[1]} against {names[0]}", points, names[0], names[1], diagonal=True
    )
    text = f"{len(shared.ids)} samples that all runs have scored; underlined: nearest to the truth."
    notes_below = ["From predictions.csv of each run."]
    return Section("Answers against each other", text, [table], [chart], notes=notes_below)


def _confusions(shared: SharedAnswers | None, names: Sequence[str]) -> Section:
    """A table for each run, with the same classes."""
    if shared is None:
        return Section("Confusion")
    low, high = np.floor(shared.label.min()), np.ceil(shared.label.max())
    if not 3 < high - low <= MOST_POINTS:
        return Section("Confusion")
    points = [f"{point:.0f}" for point in np.arange(low, high + 1)]
    truth = (np.round(shared.label.clip(low, high)) - low).astype(int)
    tables = []
    for name, prediction in zip(names, shared.prediction, strict=True):
        answer = (np.round(prediction.clip(low, high)) - low).astype(int)
        tables.append(
            confusion_table(f"{name}: rows true, columns predicted", points, truth, answer)
        )
    return Section("Confusion", "The shade is the share of the true class.", tables)
