"""What a run directory holds, read for pages and comparisons. Nothing is computed here: every number
of a page comes from a file beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from core.command import Refused
from core.file_access.json_files import read_json_object
from core.file_access.regular_files import check_regular_file, read_regular_text
from core.metrics.declared import METRICS
from launch.config import ConfigError, leaves
from launch.reports.event_log import read_events
from launch.run_directory import CONFIG, recorded_settings

SCORES, PREDICTIONS, REPORT = "scores.json", "predictions.csv", "report.md"
Scores = dict[str, dict[str, float]]  # split -> score -> value


@dataclass(frozen=True)
class RunRecord:
    """One run, finished or not."""

    folder: Path
    settings: dict[str, Any]  # as config.json has them
    provenance: dict[str, Any]
    scores: Scores  # empty while the run is not finished
    events: dict[str, list[dict[str, Any]]]  # kind -> events of log.jsonl, in the order of steps
    constant: Scores = field(default_factory=dict)  # split/constant answer -> its scores
    data: dict[str, Any] = field(default_factory=dict)  # data.json

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe(self) -> str:
        return str(self.settings.get("recipe") or self.settings.get("model"))

    @property
    def is_finished(self) -> bool:
        return is_finished(self.folder)

    @property
    def flat_settings(self) -> dict[str, Any]:
        """Settings by dotted names."""
        return leaves(self.settings)

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return self.events.get("epoch", [])

    @property
    def style(self) -> str:
        """Of the metrics."""
        return str(self.settings.get("metrics", "mosi"))

    @property
    def select(self) -> str:
        return str(self.settings.get("select", "MAE"))

    @property
    def best_epoch(self) -> int | None:
        """Number, from 0, of the epoch that selection took; None before the first."""
        scored = [event for event in self.epochs if self.select in event]
        if not scored:
            return None
        sign = -1.0 if self.settings.get("goal") == "max" else 1.0
        best = min(scored, key=lambda event: sign * event[self.select])  # the first of equals
        return int(best["epoch"])

    @property
    def last_split(self) -> str:
        """The split of the predictions: test where there is one."""
        return "test" if "test" in self.scores or not self.scores else "valid"

    @property
    def remarks(self) -> list[str]:
        """What the run's report begins with, such as that its data are made up."""
        path = self.folder / REPORT
        lines = read_regular_text(path).splitlines() if path.is_file() else []
        return [line.removeprefix("> ") for line in lines if line.startswith("> ")]

    @cached_property
    def predictions(self) -> Any:
        """The table of ``predictions.csv``; None where there is none.

        Raises:
            ConfigError: the file is no table.
        """
        import pandas as pd

        path = self.folder / PREDICTIONS
        if not path.exists():
            return None
        check_regular_file(path)
        try:
            table = pd.read_csv(path, keep_default_na=False)
        except (ValueError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no table of predictions: {error}") from None
        return table


def read_run(folder: Path) -> RunRecord:
    """The record of a run directory.

    Raises:
        ConfigError: it is none, or one of its files cannot be read; the message names the file.
    """
    settings = recorded_settings(folder)
    config = read_json_object(folder / CONFIG)
    facts = read_object(folder / "facts.json")
    constant: Scores = {}
    for split, answers in facts.get("constant", {}).items():
        for answer, values in answers.items():
            constant[f"{split}/{answer}"] = values
    has_log = (folder / "log.jsonl").exists()
    return RunRecord(
        folder=folder,
        settings=settings,
        provenance=config.get("provenance") or {},
        scores=read_scores(folder),
        events=read_events(folder) if has_log else {},
        constant=constant,
        data=read_object(folder / "data.json"),
    )


def is_finished(folder: Path) -> bool:
    """Whether the run has come to its end: its report is written last."""
    return (folder / SCORES).is_file() and (folder / REPORT).is_file()


def read_scores(folder: Path) -> Scores:
    """``scores.json``; empty where there is none.

    Raises:
        ConfigError: it holds something else than numbers by split and score.
    """
    path = folder / SCORES
    content = read_object(path)
    for split, values in content.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: {split!r} holds no scores; evaluate the run again")
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(
                    f"{path}: {split}/{name} is {json.dumps(value)[:60]}, no number; evaluate the "
                    "run again"
                )
    return content


def is_score(name: str) -> bool:
    """Whether a name in the log is that of a metric, whatever prefixes it has."""
    return name.rsplit("/", 1)[-1] in METRICS


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        return read_json_object(path)
    except Refused as error:
        raise ConfigError(f"{error}; copy the file from a backup, or start again") from None
