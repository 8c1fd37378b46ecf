"""``report.html`` of a study: its tables, differences with their intervals, curves over what is
varied, and the runs."""

from __future__ import annotations

import math
from pathlib import Path

from launch.reports.pages.charts import Chart, Series, line_chart
from launch.reports.pages.page import Cell as PageCell
from launch.reports.pages.page import Section, Table, write_page
from launch.reports.pages.run_page import PAGE, write_figures
from launch.reports.run_log import spoken_duration
from tune.studies.results import Cell, Place, Results
from tune.studies.study_tables import (
    SIGNIFICANT,
    cell_text,
    headings,
    is_significant,
    least_p,
    legend,
    place_title,
)

DIFFERENCES = [
    "row",
    "metric",
    "difference",
    "95 % over samples",
    "p",
    "p by Holm",
    "effect (d)",
    "says",
]


def write_study_page(results: Results, failed: dict[str, str]) -> Path:
    """Write the page and its figures; the page's path.

    Args:
        failed: run's folder -> why it has no scores.
    """
    study = results.study
    sections = [_table_section(results), _difference_section(results), _curve_section(results)]
    sections += [_settings_section(results), _runs_section(results, failed)]
    charts = [chart for one in sections for chart in one.charts]
    if charts:
        write_figures(study.folder / "figures", charts)
    path = study.folder / PAGE
    said = [remark for record in results.records.values() for remark in record.remarks]
    remarks = list(dict.fromkeys(said))
    write_page(
        path,
        study.title,
        study.question or f"Rows by seeds, on {results.split}.",
        sections,
        remarks,
    )
    return path


def _table_section(results: Results) -> Section:
    tables = [_table(results, place) for place in results.places()]
    if not results.cells:
        return Section("Scores", "No run has come to its end yet.")
    return Section("Scores", legend(results), tables, notes=["From table.csv."])


def _table(results: Results, place: Place) -> Table:
    rows: list[list[PageCell | str]] = []
    for row in results.study.rows:
        cells: list[PageCell | str] = []
        count = 0
        for metric in results.metrics:
            cell = results.cell(row.name, place, metric)
            count = max(count, len(cell.seeds) if cell else 0)
            cells.append(PageCell(cell_text(cell), best=bool(cell and cell.is_best)))
        rows.append([row.name, str(count), *cells])
    caption = place_title(results, place) or "All rows"
    return Table(caption, ["row", "seeds", *headings(results.metrics)], rows)


def _difference_section(results: Results) -> Section:
    study = results.study
    tables = []
    for place in results.places():
        rows: list[list[PageCell | str]] = []
        for cell in results.cells:
            if (cell.data, cell.value) == place and not math.isnan(cell.difference):
                rows.append([*_difference_row(cell)])
        if rows:
            caption = place_title(results, place) or f"Against {study.baseline}"
            tables.append(Table(caption, DIFFERENCES, rows, ["metric", "says"]))
    pairs = min((len(cell.seeds) for cell in results.cells), default=0)
    text = (
        f"Each row minus {study.baseline!r}, over pairs of the same seed. p: paired {study.test} "
        "test over seeds; Holm's correction over the rows of one metric; d: the mean difference in "
        "standard deviations of the differences. The interval is of the same difference when the "
        "test samples are drawn anew: it says whether other samples of this kind would agree."
    )
    least = least_p(results, pairs)
    if 0 < pairs and least >= SIGNIFICANT:
        text += f" With {pairs} seeds the least possible corrected p is {least:.2g}."
    return Section("Differences", text if tables else "", tables, notes=["From table.csv."])


def _difference_row(cell: Cell) -> list[str]:
    interval = ""
    if not math.isnan(cell.difference_low):
        interval = f"{cell.difference_low:+.3f} … {cell.difference_high:+.3f}"
    return [
        cell.row,
        cell.metric,
        f"{cell.difference:+.4f}",
        interval,
        _number(cell.p),
        _number(cell.p_holm),
        _number(cell.effect),
        conclusion(cell),
    ]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"


def conclusion(cell: Cell) -> str:
    """What a difference shows, in words: by seeds, by samples, by both, or not."""
    is_better = (cell.difference > 0) == cell.higher_is_better
    word = "better" if is_better else "worse"
    if cell.difference == 0:
        return "the same"
    by_samples = cell.difference_low > 0 or cell.difference_high < 0
    if is_significant(cell) and by_samples:
        return f"{word}, over seeds and over samples"
    if is_significant(cell):
        return f"{word} over seeds; other samples might not agree"
    if by_samples:
        return f"{word} on other samples too; too few seeds, or too different, to say more"
    return "may be chance"


def _curve_section(results: Results) -> Section:
    """A line for each row over the values of what is varied, where these are numbers."""
    study = results.study
    values = [_as_number(value) for value in study.values()]
    if not study.varied or any(value is None for value in values):
        return Section("Over what is varied")
    charts: list[Chart] = []
    for data in study.data:
        for metric in results.metrics:
            series = []
            for row in study.rows:
                cells = [results.cell(row.name, (data, value), metric) for value in study.values()]
                pairs = [(x, cell) for x, cell in zip(values, cells, strict=True) if cell]
                if pairs:
                    means = [cell.mean for _, cell in pairs]
                    spread = [0.0 if math.isnan(c.deviation) else c.deviation for _, c in pairs]
                    x = [float(number or 0) for number, _ in pairs]
                    series.append(Series(row.name, x, means, spread))
            if series:
                (heading,) = headings([metric])
                title = heading if len(study.data) == 1 else f"{heading}, {Path(data).name}"
                charts.append(line_chart(title, series, study.varied, metric, whole_x=False))
    text = "The band is one standard deviation over seeds." if charts else ""
    return Section("Over what is varied", text, charts=charts, notes=["From table.csv."])


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _settings_section(results: Results) -> Section:
    """What each row changes, and what holds for all."""
    study = results.study
    rows: list[list[PageCell | str]] = []
    for row in study.rows:
        changes = [f"{name}={value}" for name, value in row.changes.items()]
        rows.append([row.name, row.recipe, "; ".join(changes) or "nothing"])
    header = ["row", "recipe", "changes"]
    facts = [
        ("seeds", ", ".join(map(str, study.seeds))),
        ("data", ", ".join(study.data)),
        ("for all runs", "; ".join(study.settings) or "nothing changed"),
    ]
    return Section("Rows", "", [Table("What each row is", header, rows, header)], facts=facts)


def _runs_section(results: Results, failed: dict[str, str]) -> Section:
    study = results.study
    rows: list[list[PageCell | str]] = []
    total = 0.0
    for one in results.finished:
        record = results.records[str(one.folder)]
        seconds = sum(float(event.get("seconds", 0)) for event in record.epochs)
        total += seconds
        scores = [f"{record.scores[results.split][name]:.4f}" for name in results.metrics[:3]]
        page = one.folder / PAGE
        link = page.relative_to(study.folder).as_posix() if page.is_file() else ""
        name = PageCell(f"{one.row}, {one.seed}", link=link)
        rows.append([name, one.value, *scores, str(len(record.epochs)), spoken_duration(seconds)])
    header = ["run", "value", *results.metrics[:3], "epochs", "training"]
    notes = [
        f"{Path(folder).parent.name}, {Path(folder).name}: {why}" for folder, why in failed.items()
    ]
    count = len(results.finished) + len(results.missing)
    text = (
        f"{len(results.finished)} of {count} runs have come to their end; training took "
        f"{spoken_duration(total)} in all."
    )
    tables = [Table("Finished runs", header, rows, ["value"])] if rows else []
    return Section("Runs", text, tables, notes=[*notes, "From runs.csv and the runs' own files."])
