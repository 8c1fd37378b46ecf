"""A run from its directory to its report: prepared, resumed, trained and evaluated once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints, read_state
from launch.checkpoints.tensors import load_generators, load_moments, load_weights
from launch.config import ConfigError, Run
from launch.engine import load_grad_scaler, start
from launch.loop import fit
from launch.monitor.preemption import Stop
from launch.reports import report
from launch.reports.run_log import RunLog
from launch.run_directory import open_run
from launch.tasks.base import Task
from launch.tasks.build import build_model, build_task


@dataclass(frozen=True)
class TrainingSession:
    """A run that is ready to go on; nothing has been trained by this process yet."""

    run: Run
    run_dir: Path
    task: Task
    log: RunLog
    progress: Progress
    stop: Stop
    engine: Any
    epochs: Iterator[dict[str, float]]  # trains; validation scores of each epoch


@contextmanager
def prepare(run: Run, *, quiet: bool = False) -> Iterator[TrainingSession]:
    """Open or make the run's directory, and everything that training needs. The test split is not in reach."""
    stop = Stop().listen()
    run, run_dir = open_run(run)
    torch.manual_seed(run.seed)
    task = build_task(run)
    model = build_model(run, task.data)
    checkpoints = Checkpoints(run_dir, Progress(), run.keep)
    with RunLog(run_dir, quiet=quiet) as log:
        engine = resume(run, model, task, checkpoints, log)
        epochs = fit(engine, task, run, run_dir, log, checkpoints, stop)
        yield TrainingSession(run, run_dir, task, log, checkpoints.progress, stop, engine, epochs)


def train(run: Run, *, quiet: bool = False) -> dict[str, dict[str, float]]:
    """Train, then evaluate the best checkpoint once on validation and test, and write the report."""
    with prepare(run, quiet=quiet) as it:
        for scores in it.epochs:
            it.log.say(_line(scores, it.run))
        it.stop.nothing_to_save = True  # from here on a signal ends this process at once
        return report.finish(it.run, it.run_dir, it.task, it.log, it.engine.device)


def resume(run: Run, model: Any, task: Any, checkpoints: Checkpoints, log: RunLog) -> Any:
    """The engine, at the newest whole checkpoint if there is one."""
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
    load_weights(folder, state.shapes, model)
    engine = start(model, run)
    load_moments(folder, state.adam_step, engine, model)
    load_grad_scaler(engine, state.loss_scale)
    task.load_state_dict(state.task)
    vars(checkpoints.progress).update(vars(state.progress))
    load_generators(folder, state.ranks, (run.seed, state.progress.step))
    checkpoints.newest = folder.name
    log.say(
        f"going on at epoch {state.progress.epoch + 1}, step {state.progress.step}, from {folder}"
    )
    if state.progress.best_epoch >= 0:
        _, complaints = checkpoints.find("best")
        for complaint in complaints:
            log.say(f"{complaint}; the best of the epochs to come takes its place")
            checkpoints.progress.best, checkpoints.progress.best_epoch = math.inf, -1
    return engine


def _line(scores: dict[str, float], run: Run) -> str:
    """One epoch in one line: the loss, what selection goes by, and how fast it went."""
    loss = sum(value for name, value in scores.items() if name.startswith("loss_"))
    others = [
        name for name in ("MAE", "Corr", "Accuracy", "Macro_F1", "Hits@1", "MRR") if name in scores
    ]
    shown = list(dict.fromkeys([run.select, *others]))[:3]
    numbers = "  ".join(f"{name} {scores[name]:.4f}" for name in shown if name in scores)
    return (
        f"epoch {int(scores['epoch']) + 1}/{run.epochs}  loss {loss:.4f}  valid {numbers}  "
        f"{scores['samples_per_second']:.0f} samples/s, {scores['data_wait']:.1%} waiting for data"
    )
