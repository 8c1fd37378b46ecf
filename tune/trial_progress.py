"""Ray's events, as they come: into the journal, and as lines for the person at the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray.tune import Callback

from tune.driver import Driver
from tune.journal import WORST, Journal
from tune.overrides import values

EVERY = 30.0  # seconds between two lines about running trials


class Progress(Driver, Callback):
    """Args:
    select: the score that is searched for; ``sign`` is -1 where more of it is better.
    """

    def __init__(self, journal: Journal, *, trials: int, select: str, sign: float):
        self.journal, self.trials, self.select, self.sign = journal, trials, select, sign
        self._said = time.monotonic()
        self._running: dict[int, str] = {}

    def _say(self, number: int, text: str) -> None:
        print(f"trial {number:>{len(str(self.trials))}}/{self.trials}  {text}", flush=True)

    def _best(self) -> str:
        ranking = self.journal.ranking()
        return (
            f"; best {self._score(ranking[0].best)} (trial {ranking[0].number})" if ranking else ""
        )

    def _score(self, objective: float) -> str:
        return f"{self.select} {self.sign * objective:.4f}"

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = int(trial.config["number"])
        hidden = ("number", "test", "origin")
        changes = {key: value for key, value in trial.config.items() if key not in hidden}
        known = self.journal.records.get(number)
        if trial.config.get("test"):
            self._say(number, "evaluating the test split")
            return
        self._say(number, ("goes on  " if known else "started  ") + values(changes))
        self.journal.write("start", number, changes=changes)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        number = int(trial.config["number"])
        if result.get("test") is not None:
            self.journal.write("test", number, scores=result["test"])
        elif result["objective"] < WORST:
            kept = {key: result[key] for key in ("epoch", "objective", "scores")}
            self.journal.write("epoch", number, **kept)
            self._running[number] = (
                f"trial {number} epoch {result['epoch']} {self._score(result['objective'])}"
            )
        if time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            print(
                f"running: {', '.join(self._running.values()) or 'no epoch is over yet'}{self._best()}",
                flush=True,
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        if trial.config.get("test") and not result.get("reason"):
            return
        self._end(
            int(trial.config["number"]), result.get("state") or "stopped", result.get("reason", "")
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(int(trial.config["number"]), "failed", why(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._say(int(trial.config["number"]), f"starts again from its checkpoint: {why(trial)}")

    def on_checkpoint(
        self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any
    ) -> None:
        self.journal.write("checkpoint", int(trial.config["number"]), path=str(checkpoint.path))

    def _end(self, number: int, state: str, reason: str) -> None:
        self._running.pop(number, None)
        self.journal.write("end", number, state=state, reason=reason)
        record = self.journal.records[number]
        said = reason
        if record.usable:
            said = (
                f"{self._score(record.best)} in epoch {record.best_epoch} of {len(record.history)}"
            )
        self._say(number, f"{state:<8}  {said}{self._best()}")


def why(trial: Any) -> str:
    """What ended the trial, in one line. Ray has it in a file of the driver's, which it copies to the storage later."""
    path = Path(trial.error_file)
    text = (
        path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "its actor died"
    )
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("tune.trial.TrialKilled: ")
