"""Runs beside each other: ``concord compare RUN RUN [RUN ...]``.

First the settings in which they differ, then scores with intervals, curves over each other, the
samples on which they disagree most, and their confusions. Everything is read from the runs' own
files; on the terminal stand the first two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from core.command import run
from core.file_access.targets import check_file
from launch.command_line import read, settings_parser
from launch.comparing.compare_page import compare_sections, score_lines
from launch.comparing.differences import different_settings, run_names
from launch.config import ConfigError
from launch.reports.pages.page import render, write_page
from launch.reports.run_record import RunRecord, read_run
from launch.reports.tables import markdown_table

MOST_RUNS = 12  # whose lines can be told apart
TITLE = "Runs beside each other"


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The records of the runs to compare.

    Raises:
        ConfigError: too few, too many, or one is no run.
    """
    if len(folders) < 2:
        raise ConfigError("name two runs or more: concord compare runs/one runs/other")
    if len(folders) > MOST_RUNS:
        raise ConfigError(
            f"{len(folders)} runs are too many to tell apart; name at most {MOST_RUNS}, or make a "
            "study of them"
        )
    return [read_run(folder) for folder in folders]


def comparison_page(records: Sequence[RunRecord]) -> str:
    """The page as HTML."""
    names = run_names(records)
    return render(TITLE, _lead(names), compare_sections(records, names))


def compare(folders: Sequence[Path], out: Path) -> None:
    """Print the differences and the scores; write the page."""
    records = read_runs(folders)
    check_file(out)
    names = run_names(records)
    different = different_settings(records)
    if different:
        print(markdown_table(["setting", *names], [[name, *values] for name, values in different]))
    else:
        print("all settings are the same")
    header, lines = score_lines(records, names)
    if lines:
        print()
        print(markdown_table(header, lines))
    write_page(out, TITLE, _lead(names), compare_sections(records, names))
    print(f"\npage: {out}")


def _lead(names: Sequence[str]) -> str:
    return f"{', '.join(names)}. Every number comes from the files of these runs."


def main(arguments: list[str] | None = None) -> int:
    """The exit code; ``core.command`` lists them."""

    def work() -> None:
        parser = settings_parser("compare", __doc__ or "", "RUN RUN [RUN ...] [options]")
        parser.add_argument(
            "--out", type=Path, default=Path("compare.html"), metavar="FILE", help="the page"
        )
        line = read(parser, arguments)
        if line.changes:
            raise ConfigError(f"concord compare has no settings: {line.changes[0]}; see --help")
        compare([Path(name) for name in line.names], line.options.out)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
