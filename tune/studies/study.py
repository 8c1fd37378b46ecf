"""From a question to a table: ``concord study hscl_ablation data=DIR``.

Rows (models, or changes to one) by seeds by data sets, each a normal run directory. Finished runs
are never repeated, one that was stopped goes on: the same command does both. Then the tables:
``table.csv``, ``runs.csv``, ``table.md``, ``table.tex``, ``report.html``.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from core.command import CANNOT_GO_ON, DONE, run
from core.file_access.targets import check_folder
from core.files import write_atomically
from launch.command_line import CommandLine, read, settings_parser
from launch.config import ConfigError
from launch.monitor.lease import held
from launch.reports.pages.run_page import PAGE, write_run_page
from launch.reports.run_log import spoken_duration
from launch.reports.run_record import is_finished
from launch.run_directory import find_run
from tune.studies.plan import (
    READY,
    Study,
    StudyRun,
    Words,
    make_study,
    read_file,
    read_seeds,
    ready_names,
)
from tune.studies.pool import Ended, StudyStopped, make_pool
from tune.studies.results import Results, collect
from tune.studies.study_page import write_study_page
from tune.studies.study_tables import cells_csv, latex, markdown, runs_csv

STUDY = "study.json"
DESCRIPTION = """Train rows by seeds, and say which differ by more than chance.

STUDY is a ready-made study (--list), a TOML file, or models: hscl,self_mm
data=DIR[,DIR]  set=mosi (which recipes are meant)  seeds=1111..1115  rows=NAME[,NAME]
baseline=ROW  metrics=MAE,Corr  test=permutation|wilcoxon  vary.KEY=VALUE,VALUE (each row under each)
workers=0 (runs side by side; 0: one for each GPU, or one)  processes=1 (ranks of one run)  run_dir=DIR
Every other key=value is a setting of all runs: epochs=3 batch_size=64

The same command goes on where it stopped; finished runs are not repeated."""
OWN = (
    "data",
    "set",
    "seeds",
    "rows",
    "baseline",
    "metrics",
    "test",
    "workers",
    "processes",
    "run_dir",
)


def run_study(study: Study, *, only_tables: bool = False) -> int:
    """Train what is not there yet, then write the tables; the exit code."""
    check_folder(study.folder)
    study.folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    started = time.monotonic()
    with held(study.folder):
        write_atomically(study.folder / STUDY, json.dumps(study.as_json(), indent=1) + "\n")
        runs = list(study.runs())
        waiting = [one for one in runs if not _is_done(one)]
        print(f"{study.title}: {len(runs)} runs, {len(runs) - len(waiting)} are done", flush=True)
        if waiting and not only_tables:
            failed = _train(study, waiting)
        results = collect(study)
        page = write_results(results, failed)
    print(f"\n{markdown(results)}")
    print(f"table: {study.folder / 'table.md'}, table.csv, table.tex; page: {page}")
    if failed:
        print(
            f"{len(failed)} runs came to no normal end; the same command tries them again",
            file=sys.stderr,
        )
        return CANNOT_GO_ON
    if not only_tables:
        print(f"all runs are done ({spoken_duration(time.monotonic() - started)} this time)")
    return DONE


def _is_done(one: StudyRun) -> bool:
    """Whether the run has come to its end.

    Raises:
        ConfigError: its folder holds a run with other settings.
    """
    if not (one.folder / "config.json").exists():
        return False
    find_run(one.run())
    return is_finished(one.folder)


def _train(study: Study, waiting: list[StudyRun]) -> dict[str, str]:
    """Folder -> why, of the runs that came to no normal end."""
    from tune.workers import operators  # which imports what only training needs

    failed: dict[str, str] = {}
    pool = make_pool(study.folder, study.workers, study.processes, operators.build())
    progress = Progress(len(waiting), len(pool.places))

    def heard(ended: Ended) -> None:
        if ended.reason:
            failed[str(ended.run.folder)] = ended.reason
        print(progress.line(ended), flush=True)

    with _asked_to_stop_by_sigterm():
        pool.train(waiting, heard)
    return failed


class Progress:
    """What is said as each run comes to its end."""

    def __init__(self, count: int, places: int):
        self.count, self.places = count, places
        self.done = 0
        self.seconds = 0.0

    def line(self, ended: Ended) -> str:
        self.done += 1
        self.seconds += ended.seconds
        left = (self.count - self.done) * self.seconds / self.done / self.places
        one = ended.run
        value = f" {one.value}" if one.value else ""
        said = ended.reason or _scores_of(one)
        rest = f", {spoken_duration(left)} left" if self.done < self.count else ""
        took = spoken_duration(ended.seconds)
        head = f"{self.done}/{self.count} {one.row}{value}, seed {one.seed}"
        return f"{head}: {said} ({took}{rest})"


def _scores_of(one: StudyRun) -> str:
    scores = json.loads((one.folder / "scores.json").read_text(encoding="utf-8"))
    last = scores.get("test", scores.get("valid", {}))
    shown = [f"{name} {value:.4f}" for name, value in list(last.items())[:2]]
    return " ".join(shown)


def write_results(results: Results, failed: dict[str, str]) -> Path:
    """All tables and the page, from what the runs' folders hold; the page's path."""
    folder = results.study.folder
    write_atomically(folder / "table.csv", cells_csv(results))
    write_atomically(folder / "runs.csv", runs_csv(results))
    write_atomically(folder / "table.md", markdown(results))
    write_atomically(folder / "table.tex", latex(results))
    for one in results.finished:
        if not (one.folder / PAGE).is_file():
            write_run_page(one.folder)
    return write_study_page(results, failed)


@contextmanager
def _asked_to_stop_by_sigterm() -> Iterator[None]:
    """Within this block SIGTERM, as a batch system sends it, ends the study like Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StudyStopped("asked to stop; everything is saved, and the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(line: CommandLine) -> Study:
    """The study that a command line asks for."""
    own: dict[str, str] = {}
    vary: dict[str, list[Any]] = {}
    changes = []
    for word in line.changes:
        key, _, value = word.partition("=")
        if key.startswith("vary."):
            vary[key.removeprefix("vary.")] = _values(value)
        elif key in OWN:
            own[key] = value
        elif key == "seed":
            raise ConfigError("a study has several seeds: write seeds=1111..1115")
        else:
            changes.append(word)
    words = Words(
        data=_names(own.get("data", "")),
        sets=_names(own.get("set", "")),
        seeds=read_seeds(own["seeds"]) if "seeds" in own else (),
        baseline=own.get("baseline", ""),
        metrics=_names(own.get("metrics", "")),
        test=own.get("test", ""),
        run_dir=own.get("run_dir", ""),
        rows=_names(own.get("rows", "")),
        vary=vary,
        workers=_whole("workers", own.get("workers", "0"), 0),
        processes=_whole("processes", own.get("processes", "1"), 1),
        changes=tuple(changes),
    )
    if words.test and words.test not in ("permutation", "wilcoxon"):
        raise ConfigError(f"test={words.test}: write permutation or wilcoxon")
    return make_study(line.name("a study, a TOML file or models"), words)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _values(text: str) -> list[Any]:
    values: list[Any] = []
    for part in text.split(","):
        try:
            values.append(json.loads(part))
        except ValueError:
            values.append(part)
    return values


def _whole(name: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}={text}: a whole number from {least}")
    return int(text)


def arguments_parser() -> argparse.ArgumentParser:
    parser = settings_parser("study", DESCRIPTION, "STUDY data=DIR [key=value ...] [options]")
    parser.add_argument("--list", action="store_true", help="print the ready-made studies, and end")
    parser.add_argument("--plan", action="store_true", help="print the runs, and end")
    parser.add_argument(
        "--tables", action="store_true", help="write the tables of what is there; train nothing"
    )
    return parser


def list_studies() -> int:
    for name in ready_names():
        file = read_file(READY / f"{name}.toml")
        print(f"{name}\n    {file.title}. {file.question}")
    return DONE


def main(arguments: list[str] | None = None) -> int:
    """The exit code; ``core.command`` lists them."""

    def work() -> int:
        line = read(arguments_parser(), arguments)
        if line.options.list:
            return list_studies()
        study = parse(line)
        if line.options.plan:
            for one in study.runs():
                print(" ".join(["concord", one.command, *one.words()]))
            return DONE
        return run_study(study, only_tables=line.options.tables)

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
