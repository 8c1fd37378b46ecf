"""What has happened in a search: one JSON line per event in ``journal.jsonl``, written before anything depends on it.

Everything else is worked out from it: which trials are left after an interruption, what the searcher and the scheduler
know, the tables and the pictures. A line that was cut off by a crash counts as not written.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORST = 1e9  # reported in place of a score that is no number: finite, so that it can be compared, and behind all others
ENDS = ("finished", "stopped", "diverged", "failed")


@dataclass
class Record:
    """One trial. ``number`` counts from 1."""

    number: int
    changes: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(
        default_factory=dict
    )  # epoch, from 1 -> what was reported of it
    state: str = "running"  # or one of ENDS
    reason: str = ""
    started: float = 0.0  # seconds since 1970
    ended: float = 0.0
    starts: int = 0
    checkpoint: str = ""  # the newest one that was given to Ray, where there is one
    test: dict[str, float] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether its best score may be compared: it was trained, and to a normal end."""
        return bool(self.history) and self.state in ("finished", "stopped")

    @property
    def best_epoch(self) -> int:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        self.records: dict[int, Record] = {}
        self.sessions = 0
        for line in whole.splitlines():
            self._take(json.loads(line))
        self._file = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(len(whole) + bool(whole))
        self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, event: str, trial: int = 0, **values: Any) -> None:
        body = {"event": event, "trial": trial, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(body).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._take(json.loads(json.dumps(body)))

    def _take(self, body: dict[str, Any]) -> None:
        kind = body["event"]
        if kind == "session":
            self.sessions += 1
            return
        record = self.records.setdefault(body["trial"], Record(body["trial"]))
        if kind == "start":
            record.changes = body["changes"]
            record.started = record.started or body["time"]
            record.starts += 1
        elif kind == "epoch":
            body.setdefault("objective", body.pop("badness", None))  # its name in older journals
            record.history[body["epoch"]] = body
        elif kind == "checkpoint":
            record.checkpoint = body["path"]
        elif kind == "test":
            record.test = body["scores"]
        elif kind == "end":
            record.state, record.reason, record.ended = (
                body["state"],
                body.get("reason", ""),
                body["time"],
            )

    def trials(self) -> list[Record]:
        return [self.records[number] for number in sorted(self.records)]

    def unfinished(self) -> list[Record]:
        """Trials that began and have not ended, in the order in which they began."""
        return [record for record in self.trials() if record.state == "running"]

    def ranking(self) -> list[Record]:
        """Trials that may be compared, best first; the earlier of equals."""
        return sorted((r for r in self.trials() if r.usable), key=lambda r: (r.best, r.number))
