"""One record of all that training works on, made from a run and taken up where the run stopped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from core.command import CANNOT_GO_ON
from core.model import Model
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, Pointer, read_state
from launch.checkpoints.tensors import load_generators, load_moments, load_weights
from launch.config import ConfigError, Run
from launch.engine.deepspeed_engine import Engine, load_grad_scaler, start
from launch.monitor.preemption import Stop
from launch.reports.run_log import RunLog
from launch.run_directory import find_run, record_run
from launch.tasks.build import build_model, build_task
from launch.tasks.task import Task


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and what was written about it."""

    exit_code = CANNOT_GO_ON


@dataclass(frozen=True)
class TrainingSession:
    """A run that is ready to go on, and what it needs for that."""

    run: Run
    run_dir: Path
    task: Task
    engine: Engine
    log: RunLog
    checkpoints: Checkpoints
    stop: Stop

    @property
    def model(self) -> Model:
        return self.engine.module.model

    @property
    def progress(self) -> Progress:
        """Where the run stands; changes as it trains, and is saved with every checkpoint."""
        return self.checkpoints.progress

    def save(self, *pointers: Pointer) -> Path:
        """Write a checkpoint and let ``pointers`` name it."""
        return self.checkpoints.save(self.engine, self.task, *pointers)


@contextmanager
def prepare(run: Run, *, quiet: bool = False) -> Iterator[TrainingSession]:
    """Open or make the run's directory, and everything that training needs. The test split is not
    in reach."""
    stop = Stop().listen()
    run, run_dir = find_run(run)
    torch.manual_seed(run.seed)
    task = build_task(run)
    task.check_splits()
    model = build_model(run, task.data)
    run_dir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(run_dir, Progress(), run.keep)
    with RunLog(run_dir, quiet=quiet) as log:
        engine = resume(run, model, task, checkpoints, log)
        record_run(run, run_dir)
        yield TrainingSession(run, run_dir, task, engine, log, checkpoints, stop)


def unrecorded(run: Run, task: Task, engine: Engine, run_dir: Path) -> TrainingSession:
    """A session at step 0 that keeps no log, to take and measure single steps with
    ``launch.loop.train_step``."""
    checkpoints = Checkpoints(run_dir, Progress(), run.keep)
    return TrainingSession(run, run_dir, task, engine, RunLog(None), checkpoints, Stop())


def resume(run: Run, model: Model, task: Task, checkpoints: Checkpoints, log: RunLog) -> Engine:
    """The engine, at the newest whole checkpoint if there is one.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    folder, complaints = checkpoints.find("last")
    for complaint in complaints:
        log.say(complaint)
    if folder is None:
        if complaints:
            raise ConfigError(
                "no checkpoint of this run is whole; use another run_dir to start again"
            )
        return start(model, run)
    state = read_state(folder)
    load_weights(folder, state.shapes, model)  # before the engine cuts the parameters up
    engine = start(model, run)
    load_moments(folder, state.adam_step, engine, model)
    load_grad_scaler(engine, state.loss_scale)
    task.load_state_dict(state.task)
    progress = checkpoints.progress
    vars(progress).update(vars(state.progress))
    load_generators(folder, state.ranks, (run.seed, progress.step))
    checkpoints.newest = folder.name
    log.say(f"going on at epoch {progress.epoch + 1}, step {progress.step}, from {folder}")
    if progress.best_epoch >= 0:
        _look_for_best(checkpoints, log)
    return engine


def _look_for_best(checkpoints: Checkpoints, log: RunLog) -> None:
    """Forget the best epoch when its checkpoint is damaged: nothing else could be evaluated at the
    end."""
    _, complaints = checkpoints.find("best")
    for complaint in complaints:
        log.say(f"{complaint}; the best of the epochs to come takes its place")
        checkpoints.progress.best = math.inf
        checkpoints.progress.best_epoch = -1
