"""What has happened in a search: one JSON line per event, written before anything needs it.

Everything else is worked out from it: which trials are left after an interruption, what the
searcher and the scheduler know, the tables and the plots. A line that was cut off by a crash counts
as not written.

Neither Ray nor optuna keeps such a record. ``tests/tune/test_libraries.py`` shows why:

- ``test_ray_restores_a_trial_that_has_ended_as_one_to_be_trained``: ``Tuner.restore`` goes on from
  a snapshot that is seconds old, so that what ended since is trained again.
- ``test_a_journal_of_optuna_that_was_cut_off_cannot_be_opened``: its journal storage does not
  survive a crash within a line.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from core.command import Refused
from core.file_access.json_files import parse_json
from core.file_access.regular_files import open_regular_file
from core.files import naming

# Reported in place of a score that is no number: finite, so that it can be compared, and behind all
# others.
WORST = 1e9

State = Literal["running", "finished", "stopped", "diverged", "failed"]
NO_ROOM = "no room"  # reported as the state of a trial that a full disk stopped; it stays open


class _Event(BaseModel):
    """What every line says; each kind below says more, and other keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    event: str
    trial: int
    time: float


class _Start(_Event):
    changes: dict[str, Any]


class _Epoch(_Event):
    epoch: int
    objective: float = Field(validation_alias=AliasChoices("objective", "badness"))
    scores: dict[str, float]


class _Checkpoint(_Event):
    path: str


class _Test(_Event):
    scores: dict[str, float]


class _End(_Event):
    state: State
    reason: str = ""


_KINDS: dict[str, type[_Event]] = {
    "start": _Start,
    "epoch": _Epoch,
    "checkpoint": _Checkpoint,
    "test": _Test,
    "end": _End,
}


def read_event(line: bytes, where: str) -> dict[str, Any]:
    """The event of one line.

    Args:
        where: file and line, for the message.

    Raises:
        Refused: it is none, or says something of another kind than its sort of event has.
    """
    event = parse_json(line.decode("utf-8", "replace"), where)
    kind = event.get("event") if isinstance(event, dict) else None
    try:
        _KINDS.get(str(kind), _Event).model_validate(event)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise Refused(
            f"{where} is no event of a search: {key}: {first['msg']}; remove the line, and what it "
            "told is done again"
        ) from None
    return dict(event)


@dataclass
class Record:
    """One trial. ``number`` counts from 1."""

    number: int
    changes: dict[str, Any] = field(default_factory=dict)
    # epoch, from 1 -> what was reported of it
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    state: State = "running"
    reason: str = ""
    started: float = 0.0  # seconds since 1970
    ended: float = 0.0
    starts: int = 0
    checkpoint: str = ""  # the newest one that Ray has stored, where there is one
    test: dict[str, float] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether its best score may be compared: it was trained, and to a normal end."""
        return bool(self.history) and self.state in ("finished", "stopped")

    @property
    def best_epoch(self) -> int:
        """The earliest of those with the lowest objective."""
        return min(self.history, key=lambda epoch: (self.history[epoch]["objective"], epoch))

    @property
    def best(self) -> float:
        """Lowest objective of any epoch."""
        return min((event["objective"] for event in self.history.values()), default=math.inf)

    @property
    def scores(self) -> dict[str, float]:
        """Validation scores of the best epoch."""
        return self.history[self.best_epoch]["scores"]


class Journal:
    """A context manager; every event is on the disk when ``write`` returns."""

    def __init__(self, path: Path):
        self.path = path
        self.records: dict[int, Record] = {}
        self.sessions = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        content = b""
        if path.exists():
            with open_regular_file(path) as file:
                content = file.read()
        complete, newline, _ = content.rpartition(b"\n")
        for number, line in enumerate(complete.splitlines(), 1):
            self._add(read_event(line, f"{path}, line {number}"))
        self._file = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(len(complete) + len(newline))
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with naming(self.path):
            self._file.close()

    def write(self, event: str, trial: int = 0, **values: Any) -> None:
        body = {"event": event, "trial": trial, "time": round(time.time(), 3), **values}
        line = json.dumps(body)
        with naming(self.path):
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._add(json.loads(line))  # as it will be read back

    def _add(self, event: dict[str, Any]) -> None:
        """Bring the records up to date with one more event."""
        kind = event["event"]
        if kind == "session":
            self.sessions += 1
            return
        record = self.records.setdefault(event["trial"], Record(event["trial"]))
        if kind == "start":
            record.changes = event["changes"]
            record.started = record.started or event["time"]
            record.starts += 1
        elif kind == "epoch":
            if "badness" in event:  # the objective's name in older journals
                event["objective"] = event.pop("badness")
            record.history[event["epoch"]] = event
        elif kind == "checkpoint":
            record.checkpoint = event["path"]
        elif kind == "test":
            record.test = event["scores"]
        elif kind == "end":
            record.state = event["state"]
            record.reason = event.get("reason", "")
            record.ended = event["time"]

    def trials(self) -> list[Record]:
        return [self.records[number] for number in sorted(self.records)]

    def unfinished(self) -> list[Record]:
        """Trials that began and have not ended, in the order in which they began."""
        return [record for record in self.trials() if record.state == "running"]

    def untested(self) -> list[Record]:
        """Trials that may be compared and whose test scores are not known."""
        return [record for record in self.trials() if record.usable and not record.test]

    def ranking(self) -> list[Record]:
        """Trials that may be compared, best first; the earlier of equals."""
        usable = [record for record in self.trials() if record.usable]
        return sorted(usable, key=lambda record: (record.best, record.number))


class RestoredFromJournal:
    """A part of the driver that is made anew from the journal when a search goes on.

    Ray copies such parts and stores them with its own state: copies are the thing itself, and
    stored it is nothing.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> RestoredFromJournal:
        return self

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()
