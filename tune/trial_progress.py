"""Ray's events, as they come: into the journal, and as lines for the person at the terminal."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper

from core.command import NO_SPACE, is_no_room
from tune.journal import NO_ROOM, WORST, Journal, RestoredFromJournal, State
from tune.sampling.domain import one_line
from tune.trial import settings_of

EVERY = 30.0  # seconds between two lines about running trials


class ProgressCallback(RestoredFromJournal, Callback):
    """Writes the journal and the terminal's lines.

    Args:
        select: the score that is searched for; ``sign`` is -1 where more of it is better.
    """

    def __init__(self, journal: Journal, *, trials: int, select: str, sign: float):
        self.journal, self.trials, self.select, self.sign = journal, trials, select, sign
        self._last_line = time.monotonic()
        self._running: dict[int, str] = {}  # trial -> its newest epoch, in words
        self.no_room = ""  # where and why nothing can be written any more; ends the search

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.no_room:
            return
        number = number_of(trial)
        if trial.config.get("test"):
            self._print(number, "evaluating the test split")
            return
        changes = settings_of(trial.config)
        verb = "goes on  " if number in self.journal.records else "started  "
        self._print(number, verb + one_line(changes))
        self._write("start", number, changes=changes)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number = number_of(trial)
        objective = result["objective"]
        if result.get("state") == NO_ROOM:
            self.no_room = self.no_room or f"trial {number}: {result['reason']}"
        if self.no_room:
            return
        if result.get("test") is not None:
            self._write("test", number, scores=result["test"])
        elif objective < WORST:
            self._write(
                "epoch",
                number,
                epoch=result["epoch"],
                objective=objective,
                scores=result["scores"],
            )
            score = self._score(objective)
            self._running[number] = f"trial {number} epoch {result['epoch']} {score}"
        if time.monotonic() - self._last_line > EVERY:
            self._last_line = time.monotonic()
            running = ", ".join(self._running.values()) or "no epoch is over yet"
            print(f"running: {running}{self._best()}", flush=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        reason = result.get("reason", "")
        if trial.config.get("test") and not reason:
            return  # its training had ended before
        self._end(number_of(trial), result.get("state") or "stopped", reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = error_of(trial)
        if speaks_of_no_room(reason):
            self.no_room = self.no_room or f"trial {number_of(trial)}: {reason}"
        self._end(number_of(trial), "failed", reason)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._print(number_of(trial), f"starts again from its checkpoint: {error_of(trial)}")

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any
    ) -> None:
        self._write("checkpoint", number_of(trial), path=str(checkpoint.path))

    def _write(self, event: str, trial: int, **values: Any) -> None:
        """Into the journal, while there is room. After that nothing more: what ends now has not
        ended by itself, and goes on when the search does."""
        if self.no_room:
            return
        try:
            self.journal.write(event, trial, **values)
        except OSError as error:
            if not is_no_room(error):
                raise
            self.no_room = f"{error.filename}: {error.strerror}"

    def _end(self, number: int, state: State, reason: str) -> None:
        self._running.pop(number, None)
        self._write("end", number, state=state, reason=reason)
        if self.no_room:
            return
        record = self.journal.records[number]
        outcome = reason
        if record.usable:
            epochs = f"in epoch {record.best_epoch} of {len(record.history)}"
            outcome = f"{self._score(record.best)} {epochs}"
        self._print(number, f"{state:<8}  {outcome}{self._best()}")

    def _print(self, number: int, text: str) -> None:
        width = len(str(self.trials))
        print(f"trial {number:>{width}}/{self.trials}  {text}", flush=True)

    def _best(self) -> str:
        ranking = self.journal.ranking()
        if not ranking:
            return ""
        best = ranking[0]
        return f"; best {self._score(best.best)} (trial {best.number})"

    def _score(self, objective: float) -> str:
        return f"{self.select} {self.sign * objective:.4f}"


class StopWithoutRoom(RestoredFromJournal, Stopper):
    """Ends the whole search, and not a trial alone, when the disk is full."""

    def __init__(self, progress: ProgressCallback):
        self.progress = progress

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self.progress.no_room)


def speaks_of_no_room(text: str) -> bool:
    """Whether a message from another process is about a full disk."""
    return any(os.strerror(number) in text for number in NO_SPACE)


def number_of(trial: Any) -> int:
    """The search's number of one of Ray's trials."""
    return int(trial.config["number"])


def error_of(trial: Any) -> str:
    """What ended the trial, in one line, from the file that Ray writes it to."""
    path = Path(trial.error_file)
    if not path.is_file():
        return "its actor died"
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("tune.trial.TrialKilled: ")
