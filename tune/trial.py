"""A trial for Ray: an actor that holds resources and runs the trial's processes itself.

The processes are a normal run in a folder of its own (``launch.train``'s loop, log and
checkpoints). A trial that starts again, on whatever occasion, finds the run there and goes on; the
epochs before are reported anew, so that searcher and scheduler see every trial from its first
epoch. Where the folder is not shared (``storage=URI``) and where trials copy each other (pbt), the
run travels through Ray's checkpoints instead.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory

from core.command import CANNOT_GO_ON, RANK_LOST, STOPPED, is_no_room
from core.command import NO_ROOM as NO_ROOM_CODE
from launch.command_line import as_changes
from tune.journal import NO_ROOM, WORST
from tune.workers.trial_processes import ProcessEnded, Processes

GO_ON = (STOPPED, RANK_LOST)  # both leave a checkpoint to go on from
CARRIED = ("checkpoints", "log.jsonl")  # what a run needs to go on elsewhere
NOT_SETTINGS = ("number", "test", "origin")  # in a trial's config: what the search says of it


class TrialKilled(RuntimeError):
    """A process of the trial was ended from outside; Ray starts the trial again."""


@dataclass(frozen=True)
class Job:
    """What all trials share, in plain values: an actor starts faster with few imports."""

    recipe: str
    changes: dict[str, Any]
    # where every trial has its own; empty: where Ray puts the trial, for machines that share no
    # folder
    folder: str
    processes: int = 1  # of one trial
    cpus: float = 1.0  # of one process
    threads: int = 1  # of one process
    gpus: float = 0.0
    cwd: str = ""
    extensions: str = ""  # compiled operators of DeepSpeed, copied for each process

    def resources(self) -> PlacementGroupFactory:
        """One bundle: a trial's processes share a machine and see the GPUs of this trial only."""
        bundle = {"CPU": self.processes * self.cpus}
        if self.gpus:
            bundle["GPU"] = self.processes * self.gpus
        return PlacementGroupFactory([bundle])


class Trial(tune.Trainable):
    """``config`` holds the trial's number, its settings, and perhaps where to go on from."""

    def setup(self, config: dict[str, Any], *, job: Job) -> None:
        self.job = job
        self.number = int(config["number"])
        self.test = bool(config.get("test"))
        self.folder = Path(job.folder or self.logdir) / f"{self.number:04d}"
        self.changes = settings_of(config)
        self.processes: Processes | None = None
        self.epoch, self.best = 0, math.inf
        self.no_room = ""  # why nothing could be written
        with self._room_counted():
            self.folder.mkdir(parents=True, exist_ok=True)
            if config.get("origin") and not self.run_dir.exists():
                with tune.Checkpoint(config["origin"]).as_directory() as folder:
                    self._adopt_run(Path(folder))

    @contextmanager
    def _room_counted(self) -> Iterator[None]:
        """Keep the error of a full disk for the next result: what an actor raises ends its
        trial."""
        try:
            yield
        except OSError as error:
            if not is_no_room(error):
                raise
            self.no_room = f"{error.filename}: {error.strerror}"

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def _start(self, module: str) -> Processes:
        job = self.job
        changes = {**job.changes, **self.changes, "run_dir": str(self.run_dir)}
        return Processes(
            [job.recipe, *as_changes(changes)],
            module=module,
            count=job.processes,
            threads=job.threads,
            output=self.folder / "output.log",
            folder=job.cwd,
            extensions=job.extensions,
        )

    def step(self) -> dict[str, Any]:
        """One epoch, or what went wrong with it. After a kill, Ray starts the trial again."""
        try:
            with self._room_counted():
                if not self.no_room:
                    return self._evaluate_test() if self.test else self._train_epoch()
            self.cleanup()
            return self._failure(NO_ROOM, self.no_room)
        except ProcessEnded as error:
            self.cleanup()
            if error.code < 0 or error.code in GO_ON:
                raise TrialKilled(error.reason) from None
            if error.code == NO_ROOM_CODE:
                return self._failure(NO_ROOM, error.reason)
            state = "diverged" if error.code == CANNOT_GO_ON else "failed"
            return self._failure(state, error.reason)

    def _train_epoch(self) -> dict[str, Any]:
        if self.processes is None:
            self.processes = self._start("tune.workers.worker")
        result = self.processes.next()
        objective = result["objective"]
        if not math.isfinite(objective):
            return self._failure(
                "diverged", f"the validation score is {objective} after epoch {result['epoch']}"
            )
        self.epoch, self.best = result["epoch"], min(self.best, objective)
        state = "finished" if result["last"] else ""
        return {**result, "best": self.best, "state": state, "done": result["last"]}

    def _evaluate_test(self) -> dict[str, Any]:
        """Scores of the finished run on validation and, this once, on test."""
        self.processes = self._start("tune.workers.child")
        self.processes.wait()
        scores = json.loads((self.run_dir / "scores.json").read_text(encoding="utf-8"))
        return {
            "epoch": 1,
            "objective": 0.0,
            "best": 0.0,
            "state": "finished",
            "done": True,
            "test": scores.get("test"),
        }

    def _failure(self, state: str, reason: str) -> dict[str, Any]:
        return {
            "epoch": self.epoch + 1,
            "objective": WORST,
            "best": WORST,
            "state": state,
            "reason": reason,
            "done": True,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        copy_run(self.run_dir, Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on from another run's state; settings such as learning rates stay this trial's."""
        self.cleanup()
        with self._room_counted():
            self._adopt_run(Path(checkpoint))

    def _adopt_run(self, folder: Path) -> None:
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.run_dir.mkdir(parents=True)
        copy_run(folder, self.run_dir)
        self.epoch, self.best = 0, math.inf

    def cleanup(self) -> None:
        if self.processes is not None:
            self.processes.close()
            self.processes = None


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The values of what is searched, in a trial's config."""
    return {key: value for key, value in config.items() if key not in NOT_SETTINGS}


def copy_run(origin: Path, target: Path) -> None:
    """Copy what a run needs to go on elsewhere, as far as it is there."""
    for name in CARRIED:
        if (origin / name).is_dir():
            shutil.copytree(origin / name, target / name)
        elif (origin / name).is_file():
            shutil.copy2(origin / name, target / name)
