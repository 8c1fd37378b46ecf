"""What a run's page says of its answers to single samples: against the truth, by label, by length,
the worst of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.metrics.regression import correlation
from launch.reports.pages.charts import Chart, Series, bar_chart, scatter_chart, step_chart
from launch.reports.pages.page import Cell, Section, Table
from launch.reports.run_record import PREDICTIONS, RunRecord

WORST = 15
BINS = 6
MOST_DRAWN = 1500  # points of a scatter plot
FROM = f"From {PREDICTIONS}."
RANK_TICKS = (1, 10, 50)


def answer_sections(record: RunRecord) -> list[Section]:
    """Those that the table of predictions has columns for."""
    table = record.predictions
    if table is None or not len(table):
        return []
    if "rank" in table:
        return [_ranks(record, table)]
    if "label" not in table or "prediction" not in table:
        return []  # of several targets: the scores by target say it
    are_numbers = all(
        np.issubdtype(table[name].dtype, np.number) for name in ("label", "prediction")
    )
    if record.style == "classes" or not are_numbers:
        return [_class_confusion(table, record.last_split), _worst_classes(table)]
    truth = table["label"].to_numpy(np.float64)
    answer = table["prediction"].to_numpy(np.float64)
    lengths = _lengths(table)
    return [
        _against_truth(record, table, truth, answer),
        _errors(truth, answer, lengths),
        _confusion(truth, answer, record.last_split),
        _worst(table, truth, answer),
    ]


def _against_truth(record: RunRecord, table: Any, truth: NDArray, answer: NDArray) -> Section:
    mae, corr = np.abs(answer - truth).mean(), correlation(answer, truth)
    drawn = np.linspace(0, len(truth) - 1, min(len(truth), MOST_DRAWN)).astype(int)
    notes = [_note(table, number, truth, answer) for number in drawn]
    points = Series(
        f"{len(truth)} samples", truth[drawn].tolist(), answer[drawn].tolist(), (), notes
    )
    left = scatter_chart(
        f"Predicted against true: MAE {mae:.3f}, Corr {corr:.3f}",
        points,
        "true score",
        "predicted score",
        diagonal=True,
    )
    residual = answer - truth
    apart = Series(
        f"{len(truth)} samples", truth[drawn].tolist(), residual[drawn].tolist(), (), notes
    )
    right = scatter_chart(
        "Residuals by label",
        apart,
        "true score",
        "predicted − true",
        level=(0.0, ""),
        note="A slope down means that the model draws everything towards the middle.",
    )
    return Section(
        "Answers against the truth",
        f"All {len(truth)} samples of the {record.last_split} split.",
        charts=[left, right, _calibration(truth, answer)],
        notes=[FROM],
    )


def _calibration(truth: NDArray, answer: NDArray) -> Chart:
    """The mean true score among samples with like predictions; on the diagonal where both agree."""
    order = np.argsort(answer, kind="stable")
    parts = [part for part in np.array_split(order, min(10, len(order))) if len(part)]
    said = [float(answer[part].mean()) for part in parts]
    true = [float(truth[part].mean()) for part in parts]
    notes = [
        f"{len(part)} samples: predicted {a:.2f}, true {b:.2f} on average"
        for part, a, b in zip(parts, said, true, strict=True)
    ]
    return scatter_chart(
        "Calibration",
        Series("groups of like predictions", said, true, (), notes),
        "mean prediction",
        "mean truth",
        diagonal=True,
        note="Each point is a tenth of the samples, from the lowest predictions to the highest.",
    )


def _errors(truth: NDArray, answer: NDArray, lengths: NDArray | None) -> Section:
    """Mean error in parts of the samples: by label and by length of the transcript."""
    error = np.abs(answer - truth)
    charts = [_by_bins("MAE by label", truth, error, "true score")]
    if lengths is not None and len(np.unique(lengths)) > 1:
        charts.append(_by_bins("MAE by length of the transcript", lengths, error, "words"))
    return Section(
        "Where the errors are",
        "The dashed line is the mean over all samples.",
        charts=charts,
        notes=[FROM],
    )


def _by_bins(title: str, values: NDArray, error: NDArray, label: str) -> Chart:
    """Bars of equally wide parts of the values' range, for labels, or of equally many samples."""
    if label == "words":
        edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)))
    else:
        edges = np.linspace(values.min(), values.max(), BINS + 1)
    if len(edges) < 2 or edges[0] == edges[-1]:
        edges = np.array([values.min(), values.min() + 1])
    part = np.digitize(values, edges[1:-1])
    names, means, notes = [], [], []
    for number in range(len(edges) - 1):
        found = error[part == number]
        low, high = edges[number], edges[number + 1]
        if label == "words" and (part == number).any():  # as many words as there really are
            low, high = values[part == number].min(), values[part == number].max()
        names.append(f"{low:.3g}…{high:.3g}" if high > low else f"{low:.3g}")
        means.append(float(found.mean()) if len(found) else 0.0)
        notes.append(f"{label} {low:.3g} to {high:.3g}: {len(found)} samples, MAE {means[-1]:.3f}")
    return bar_chart(
        title, names, means, label, "MAE", notes=notes, level=(float(error.mean()), "")
    )


def _confusion(truth: NDArray, answer: NDArray, split: str) -> Section:
    """By points of the scale, or by parts of a scale of few or many points."""
    low, high = np.floor(truth.min()), np.ceil(truth.max())
    if 3 < high - low <= 12:
        points = np.arange(low, high + 1)
        names = [f"{point:.0f}" for point in points]
        rows = (np.round(truth.clip(low, high)) - low).astype(int)
        columns = (np.round(answer.clip(low, high)) - low).astype(int)
    else:
        edges = np.linspace(low, high, BINS + 1)
        names = [f"{a:.2g}…{b:.2g}" for a, b in zip(edges[:-1], edges[1:], strict=True)]
        rows, columns = np.digitize(truth, edges[1:-1]), np.digitize(answer, edges[1:-1])
    return confusion_section(names, rows, columns, split)


def _class_confusion(table: Any, split: str) -> Section:
    names = sorted({*map(str, table["label"]), *map(str, table["prediction"])})
    numbers = {name: number for number, name in enumerate(names)}
    rows = np.array([numbers[str(name)] for name in table["label"]])
    columns = np.array([numbers[str(name)] for name in table["prediction"]])
    return confusion_section(names, rows, columns, split)


def confusion_section(names: list[str], rows: NDArray, columns: NDArray, split: str) -> Section:
    caption = "Rows: true class, columns: predicted class"
    table = confusion_table(caption, names, rows, columns)
    text = f"Counts on the {split} split; the shade is the share of the true class."
    return Section("Confusion", text, [table], notes=[FROM])


def confusion_table(caption: str, names: list[str], rows: NDArray, columns: NDArray) -> Table:
    """Counts with their totals, shaded by the share of the row."""
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (rows, columns), 1)
    body: list[list[Cell | str]] = []
    for name, row in zip(names, counts, strict=True):
        total = int(row.sum())
        cells = [Cell(str(count), shade=count / max(total, 1)) for count in row]
        right = row[names.index(name)] / max(total, 1)
        body.append([name, *cells, str(total), f"{right:.0%}" if total else ""])
    body.append(["all", *map(str, counts.sum(0)), str(int(counts.sum())), ""])
    return Table(caption, ["true", *names, "all", "right"], body)


def _worst(table: Any, truth: NDArray, answer: NDArray) -> Section:
    order = np.argsort(-np.abs(answer - truth), kind="stable")[:WORST]
    rows: list[list[Cell | str]] = []
    for number in order:
        cells = [
            str(table["id"].iloc[number]),
            f"{truth[number]:.2f}",
            f"{answer[number]:.2f}",
            f"{answer[number] - truth[number]:+.2f}",
        ]
        if "text" in table:
            cells.append(str(table["text"].iloc[number]))
        rows.append([*cells])
    header = ["sample", "true", "predicted", "error", *(["transcript"] if "text" in table else [])]
    shown = Table(f"The {len(rows)} largest errors", header, rows, ["transcript"])
    return Section("The worst samples", "", [shown], notes=[FROM])


def _worst_classes(table: Any) -> Section:
    """Wrong answers by how sure the model was of them."""
    rows: list[tuple[float, list[Cell | str]]] = []
    for _, row in table.iterrows():
        said, true = str(row["prediction"]), str(row["label"])
        sure = float(row.get(f"p_{said}", np.nan))
        if said != true:
            cells: list[Cell | str] = [str(row["id"]), true, said, f"{sure:.2f}"]
            rows.append((sure, [*cells, *([str(row["text"])] if "text" in table else [])]))
    rows.sort(key=lambda pair: -pair[0])
    header = ["sample", "true", "predicted", "sure", *(["transcript"] if "text" in table else [])]
    body = [cells for _, cells in rows[:WORST]]
    words = ["true", "predicted", "transcript"]
    shown = Table("Wrong answers, the surest first", header, body, words)
    return Section("The worst samples", "", [shown] if body else [], notes=[FROM])


def _ranks(record: RunRecord, table: Any) -> Section:
    """Of alignment: the share of entities whose partner is within a rank."""
    series = []
    for column, name in (("rank", "left to right"), ("rank_right_to_left", "right to left")):
        if column in table:
            ranks, counts = np.unique(table[column].to_numpy(np.int64), return_counts=True)
            shares = np.cumsum(counts) / counts.sum()
            series.append(Series(name, [1.0, *ranks.tolist()], [0.0, *shares.tolist()]))
    chart = step_chart("Share of partners within a rank", series, "rank", "share", RANK_TICKS)
    worst = table.sort_values("rank", ascending=False, kind="stable").head(WORST)
    rows: list[list[Cell | str]] = []
    for _, row in worst.iterrows():
        rows.append([str(row[name]) for name in ("left", "right", "predicted", "rank")])
    header = ["entity", "partner", "predicted", "rank"]
    shown = Table("Partners found last", header, rows, ["partner", "predicted"])
    text = f"All {len(table)} pairs of the {record.last_split} split."
    return Section("Ranks", text, [shown], [chart], notes=[FROM])


def _lengths(table: Any) -> NDArray | None:
    """(N,) words of each transcript; characters where a language writes none between blanks."""
    if "text" not in table:
        return None
    texts = [str(text) for text in table["text"]]
    words = np.array([len(text.split()) for text in texts])
    return words if words.max(initial=0) > 1 else np.array([len(text) for text in texts])


def _note(table: Any, number: int, truth: NDArray, answer: NDArray) -> str:
    said = f"{table['id'].iloc[number]}: true {truth[number]:.2f}, predicted {answer[number]:.2f}"
    if "text" in table:
        said += f" — {str(table['text'].iloc[number])[:120]}"
    return said
