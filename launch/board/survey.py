"""Which runs and studies lie in a folder, and how far each has come. What has not changed since it
was looked at is not read again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.command import Refused
from core.file_access.json_files import read_json_object
from core.metrics.declared import METRICS, headline_metrics
from launch.reports.run_record import RunRecord, is_finished, is_score, read_run
from launch.run_directory import CONFIG

STUDY = "study.json"
DEEPEST = 8  # folders below the one that is shown
NOT_ENTERED = {"checkpoints", "tensorboard", "samples", "figures", "ray", "workers", "extensions"}
FRESH = 120.0  # seconds after its last line in which a log counts as written to
WATCHED = (CONFIG, "log.jsonl", "scores.json", "report.md")


@dataclass(frozen=True)
class Found:
    """A run as it was when its files had this stamp."""

    stamp: tuple[float, ...]
    record: RunRecord | None
    problem: str = ""  # why it cannot be read


class Survey:
    """Of one folder; ids are paths below it."""

    def __init__(self, root: Path):
        self.root = root.absolute()
        self._known: dict[str, Found] = {}

    def runs(self) -> dict[str, Found]:
        """Every run, by its id."""
        found: dict[str, Found] = {}
        for folder in self._folders(CONFIG):
            name = self._id(folder)
            stamp = tuple(_changed(folder / watched) for watched in WATCHED)
            before = self._known.get(name)
            found[name] = before if before and before.stamp == stamp else _look(folder, stamp)
        self._known = found
        return found

    def studies(self) -> dict[str, dict[str, Any]]:
        """Every study, by its id."""
        found = {}
        for folder in self._folders(STUDY):
            try:
                found[self._id(folder)] = read_json_object(folder / STUDY)
            except (Refused, OSError):
                continue  # no study of ours
        return found

    def _id(self, folder: Path) -> str:
        return folder.relative_to(self.root).as_posix()

    def _folders(self, name: str) -> Iterator[Path]:
        """Folders that hold a file of this name; links to folders are not followed."""
        for place, folders, files in os.walk(self.root):
            depth = len(Path(place).relative_to(self.root).parts)
            kept = [one for one in folders if one not in NOT_ENTERED and not one.startswith(".")]
            folders[:] = sorted(kept) if depth < DEEPEST else []
            if name in files:
                yield Path(place)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _look(folder: Path, stamp: tuple[float, ...]) -> Found:
    try:
        return Found(stamp, read_run(folder))
    except (Refused, OSError) as error:
        return Found(stamp, None, str(error))


def summary(name: str, found: Found) -> dict[str, Any]:
    """What the table of the page shows of a run, as plain JSON."""
    record = found.record
    if record is None:
        return {"id": name, "state": "unreadable", "problem": found.problem}
    split = "test" if "test" in record.scores else "valid"
    scores = record.scores.get(split, {})
    if not scores and record.epochs:
        scores = {key: value for key, value in record.epochs[-1].items() if key in METRICS}
    shown = dict.fromkeys([record.select, *headline_metrics(scores)])
    return {
        "id": name,
        "state": state_of(record),
        "recipe": record.recipe,
        "model": str(record.settings.get("model", "")),
        "dataset": str(record.data.get("dataset", "")),
        "seed": record.settings.get("seed"),
        "epochs": len(record.epochs),
        "of": record.settings.get("epochs"),
        "split": split if record.scores else "valid, last epoch",
        "scores": {key: scores[key] for key in shown if key in scores},
        "seconds": sum(float(event.get("seconds", 0)) for event in record.epochs),
        "changed": max(found.stamp),
        "page": (record.folder / "report.html").is_file(),
    }


def state_of(record: RunRecord) -> str:
    """``finished``, ``running`` where its log was written to a moment ago, else ``stopped``."""
    if is_finished(record.folder):
        return "finished"
    age = time.time() - _changed(record.folder / "log.jsonl")
    return "running" if age < FRESH else "stopped"


def curves(record: RunRecord) -> dict[str, list[list[float]]]:
    """Score or loss -> [epoch, value] for each epoch so far."""
    lines: dict[str, list[list[float]]] = {}
    for event in record.epochs:
        for key, value in event.items():
            is_loss = key.startswith("loss_")
            is_number = isinstance(value, int | float) and value == value
            if is_number and (is_loss or (is_score(key) and "/" not in key)):
                lines.setdefault(key, []).append([event["epoch"] + 1, value])
    return lines
