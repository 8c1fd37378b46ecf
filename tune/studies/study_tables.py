"""The results of a study as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from core.metrics.declared import metric_of
from launch.comparing.significance import smallest_p
from launch.reports.tables import markdown_table
from tune.studies.results import Cell, Place, Results

SIGNIFICANT = 0.05
CELL_COLUMNS = (
    "row",
    "data",
    "value",
    "metric",
    "direction",
    "seeds",
    "mean",
    "deviation",
    "low",
    "high",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "p_holm",
    "effect",
    "best",
)


def cells_csv(results: Results) -> str:
    """One line for each cell: everything that the other tables and the page show."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CELL_COLUMNS)
    for cell in results.cells:
        numbers = [
            _csv_number(getattr(cell, name))
            for name in CELL_COLUMNS[CELL_COLUMNS.index("mean") : CELL_COLUMNS.index("best")]
        ]
        direction = "higher" if cell.higher_is_better else "lower"
        seeds = " ".join(map(str, cell.seeds))
        head = [cell.row, cell.data, cell.value, cell.metric, direction, seeds]
        writer.writerow([*head, *numbers, "yes" if cell.is_best else ""])
    return text.getvalue()


def runs_csv(results: Results) -> str:
    """One line for each finished run, with its scores and its folder."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "data", "value", "seed", *results.metrics, "folder"])
    for one in results.finished:
        scores = results.records[str(one.folder)].scores[results.split]
        numbers = [_csv_number(scores[name]) for name in results.metrics]
        folder = one.folder.relative_to(results.study.folder)
        writer.writerow([one.row, one.data, one.value, one.seed, *numbers, folder])
    return text.getvalue()


def _csv_number(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def cell_text(cell: Cell | None) -> str:
    """``0.713 ± 0.012``, with a star where the difference from the baseline is no chance."""
    if cell is None:
        return ""
    mean = f"{cell.mean:.3f}"
    text = mean if math.isnan(cell.deviation) else f"{mean} ± {cell.deviation:.3f}"
    return text + ("*" if is_significant(cell) else "")


def is_significant(cell: Cell) -> bool:
    return cell.p_holm < SIGNIFICANT  # nan is not


def place_title(results: Results, place: Place) -> str:
    """Names the data and the varied value, as far as a study has several."""
    data, value = place
    words = []
    if len(results.study.data) > 1:
        words.append(f"data {data}")
    if value:
        words.append(f"{results.study.varied}={value}")
    return ", ".join(words)


def headings(metrics: Sequence[str]) -> list[str]:
    return [f"{name} {'↑' if metric_of(name).higher_is_better else '↓'}" for name in metrics]


def markdown(results: Results) -> str:
    """One table for each data set and value, then how the rows differ from the baseline."""
    parts = []
    for place in results.places():
        title = place_title(results, place)
        if title:
            parts.append(f"**{title}**")
        rows = []
        for row in results.study.rows:
            cells = [results.cell(row.name, place, metric) for metric in results.metrics]
            count = max((len(cell.seeds) for cell in cells if cell), default=0)
            texts = [
                f"**{cell_text(one)}**" if one and one.is_best else cell_text(one) for one in cells
            ]
            rows.append([row.name, count, *texts])
        parts.append(markdown_table(["row", "seeds", *headings(results.metrics)], rows))
    parts.append(legend(results))
    return "\n\n".join(parts) + "\n"


def legend(results: Results) -> str:
    """How to read the tables, and what so many seeds can show at all."""
    study = results.study
    counts = {len(cell.seeds) for cell in results.cells}
    pairs = min(counts, default=0)
    said = (
        f"Mean ± sample standard deviation over seeds, on {results.split}; ↑ more is better, ↓ less "
        f"is; bold: the best mean. * differs from {study.baseline!r} by a paired {study.test} test "
        f"over seeds with Holm's correction, p < {SIGNIFICANT}."
    )
    least = least_p(results, pairs)
    if 0 < pairs and least >= SIGNIFICANT:
        said += (
            f" With {pairs} seeds no corrected p can be below {least:.2g}, so no star is possible; "
            "the intervals over samples say what can be said."
        )
    if results.missing:
        said += f" {len(results.missing)} runs are not there yet, and count for nothing."
    return said


def least_p(results: Results, pairs: int) -> float:
    """The least that a corrected p of this study can be: Holm multiplies the smallest by the number
    of comparisons."""
    comparisons = max(1, len(results.study.rows) - 1)
    return min(1.0, smallest_p(pairs) * comparisons)


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "±": r"$\pm$",
    "…": r"\dots{}",
}


def latex_text(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def latex(results: Results) -> str:
    """The tables for a paper, with booktabs: ``\\usepackage{booktabs}``."""
    lines = []
    for place in results.places():
        title = place_title(results, place)
        columns = "l" + "r" * len(results.metrics)
        lines += [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        heads = [latex_text(name) for name in headings(results.metrics)]
        lines += [" & ".join(["", *heads]) + r" \\", r"\midrule"]
        for row in results.study.rows:
            texts = []
            for metric in results.metrics:
                cell = results.cell(row.name, place, metric)
                text = latex_text(cell_text(cell)).replace("*", r"$^{*}$")
                texts.append(rf"\textbf{{{text}}}" if cell and cell.is_best else text)
            lines.append(" & ".join([latex_text(row.name), *texts]) + r" \\")
        caption = latex_text(
            f"{results.study.title}. {title + '. ' if title else ''}{legend(results)}"
        )
        lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""]
    return "\n".join(lines)
