"""``report.html`` of a run: everything that its directory says, on one page that needs nothing
else."""

from __future__ import annotations

import math
from pathlib import Path

from launch.checkpoints.store import read_state
from launch.config import ConfigError
from launch.reports.pages.answer_sections import answer_sections
from launch.reports.pages.charts import Chart
from launch.reports.pages.label_section import label_section
from launch.reports.pages.page import Section, write_figure, write_page
from launch.reports.pages.training_sections import (
    about_section,
    curves_section,
    model_section,
    scores_section,
)
from launch.reports.run_record import RunRecord, read_run

PAGE = "report.html"
FIGURES = "figures"  # the page's charts as SVG files, for papers


def run_sections(record: RunRecord) -> list[Section]:
    """All that the files of a run have something for; scores first."""
    return [
        scores_section(record),
        about_section(record, _samples(record), parameters_of(record.folder)),
        curves_section(record),
        *answer_sections(record),
        model_section(record),
        label_section(record),
    ]


def write_run_page(run_dir: Path) -> Path:
    """Write the page and its figures from the files of the directory alone; the page's path."""
    record = read_run(run_dir)
    sections = run_sections(record)
    lead = (
        f"Seed {record.settings.get('seed')}, selected by validation {record.select}. Every number "
        "here comes from a file of the run's directory."
    )
    write_figures(run_dir / FIGURES, [chart for one in sections for chart in one.charts])
    path = run_dir / PAGE
    write_page(path, f"Run of {record.recipe}", lead, sections, record.remarks)
    return path


def write_figures(folder: Path, charts: list[Chart]) -> None:
    """Each chart in a file named by its title."""
    folder.mkdir(exist_ok=True)
    for chart in charts:
        words = chart.title.partition(":")[0].lower()
        name = "_".join("".join(c if c.isalnum() else " " for c in words).split())
        write_figure(folder / f"{name}.svg", chart)


def _samples(record: RunRecord) -> dict[str, int]:
    """Samples of the splits, as far as the files know."""
    found: dict[str, int] = {}
    whole = [event for event in record.epochs if event.get("steps")]
    if whole:
        last = whole[-1]
        found["train"] = round(last["samples_per_second"] * last["seconds"])
    if record.predictions is not None:
        found[record.last_split] = len(record.predictions)
    return found


def parameters_of(run_dir: Path) -> int | None:
    """Of the model in the newest checkpoint that can be read; None where there is none."""
    for state in sorted((run_dir / "checkpoints").glob("*/state.json"), reverse=True):
        try:
            shapes = read_state(state.parent).shapes
        except (ConfigError, OSError):
            continue
        return sum(math.prod(shape) for shape in shapes.values())
    return None
