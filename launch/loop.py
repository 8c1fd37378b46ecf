"""The whole training loop, for every model and every task.

A generator: it yields the validation scores of each epoch, so that the command line may print them and a search may
report them and stop early, and neither needs a callback. The test split is not in reach here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from core import distributed
from core.batch import Batch
from core.model import Model
from launch.checkpoints.store import Checkpoints
from launch.config import Run
from launch.engine import learning_rate_factor, set_learning_rates
from launch.fetch import Fetcher
from launch.monitor import watchdog
from launch.monitor.health import Clock, Utilisation, diverged, memory, padding_share
from launch.monitor.preemption import Preempted, Stop, StopNow
from launch.reports.run_log import RunLog
from launch.step import TrainingStopped, train_step
from launch.tasks.base import Task


def fit(
    engine: Any,
    task: Task,
    run: Run,
    run_dir: Path,
    log: RunLog,
    checkpoints: Checkpoints,
    stop: Stop,
) -> Iterator[dict[str, float]]:
    """Train from where ``checkpoints.progress`` stands; after each epoch yield its number, losses and scores.

    Raises:
        TrainingStopped: a loss or gradient is not finite, or the ranks' parameters have come to differ.
        SaveError: a checkpoint could not be written.
        Preempted: a signal asked every rank to stop; everything is saved.
    """
    model: Model = engine.module.model
    progress = checkpoints.progress
    while not progress.finished and progress.epoch < run.epochs:
        epoch, started = progress.epoch, time.perf_counter()
        watchdog.report_phase(f"beginning epoch {epoch}")
        task.begin_epoch(epoch, model)
        model.begin_epoch(epoch)
        first_step = progress.epoch_steps
        task.wait_seconds()
        samples = _train_epoch(engine, task, run, run_dir, log, checkpoints, stop)
        seconds = time.perf_counter() - started
        try:
            with stop.between_batches_of(model):
                scores = task.evaluate(model, "valid", engine.device)
        except StopNow:
            _leave(engine, task, checkpoints, log)
        objective = task.objective(scores)
        improved = objective < progress.best
        if improved:
            progress.best, progress.best_epoch = objective, epoch
        means = {
            f"loss_{name}": value / max(1, progress.epoch_steps)
            for name, value in progress.sums.items()
        }
        speed = {
            "samples_per_second": samples / seconds,
            "data_wait": task.wait_seconds() / seconds,
            "seconds": seconds,
            "steps": float(progress.epoch_steps - first_step),
            "skipped_samples": float(task.skipped()),
        }
        log.event(
            "epoch",
            progress.step,
            {"epoch": epoch, **means, **scores, **speed, **memory(), **model.report()},
        )
        progress.epoch, progress.epoch_steps, progress.sums = epoch + 1, 0, {}
        progress.finished = bool(run.patience) and epoch - progress.best_epoch >= run.patience
        watchdog.report_phase("saving")
        checkpoints.save(engine, task, "last", "best") if improved else checkpoints.save(
            engine, task, "last"
        )
        yield {"epoch": float(epoch), **means, **scores, **speed}
    progress.finished = True


def _train_epoch(
    engine: Any,
    task: Task,
    run: Run,
    run_dir: Path,
    log: RunLog,
    checkpoints: Checkpoints,
    stop: Stop,
) -> int:
    """The steps that are left of the epoch in hand; the number of samples they saw, over all ranks."""
    progress = checkpoints.progress
    epoch, steps = progress.epoch, task.steps(progress.epoch)
    log.open_bar(epoch, run.epochs, progress.epoch_steps, steps)
    engine.train()
    batches, clock, utilisation = Fetcher(task.batches(epoch)), Clock(), Utilisation(run)
    seen = 0
    while True:
        clock.start()
        watchdog.report_phase(f"at step {progress.step}, waiting for data")
        parts = batches.next(lambda: stop.requested)
        if stop.agreed():
            _leave(engine, task, checkpoints, log, stuck=batches.waiting)
        if parts is None:
            break
        clock.lap("data")
        watchdog.report_phase(f"at step {progress.step}")
        rates = set_learning_rates(
            engine, run, learning_rate_factor(run, progress.step, steps * run.epochs, epoch)
        )
        size = _global_size(parts)
        with utilisation.counting(size, first=seen == 0):
            taken = train_step(engine, parts, progress, run, task, run_dir, clock)
        task.mark_consumed()
        progress.step += 1
        progress.epoch_steps += 1
        for name, value in taken.losses.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        seen += size
        speed = size / clock.total
        log.advance(taken.losses, speed)
        values = {
            "loss": sum(taken.losses.values()),
            "grad_norm": taken.grad_norm,
            "samples_per_second": speed,
        }
        values |= {f"loss_{name}": value for name, value in taken.losses.items()}
        values |= {f"lr_{name}": rate for name, rate in rates.items()}
        values |= {f"seconds_{part}": seconds for part, seconds in clock.seconds.items()}
        values |= {"padding": padding_share(parts)} | utilisation.report(speed)
        log.event("train", progress.step, values)
        if run.check_every and progress.step % run.check_every == 0:
            _compare_ranks(engine.module.model, progress.step)
        if run.save_every and progress.step % run.save_every == 0 and progress.epoch_steps < steps:
            watchdog.report_phase("saving")
            checkpoints.save(engine, task, "last")
    batches.close()
    log.close_bar()
    return seen


def _leave(
    engine: Any, task: Task, checkpoints: Checkpoints, log: RunLog, *, stuck: bool = False
) -> NoReturn:
    """Save what is not saved yet, and end the process; all ranks do."""
    log.close_bar()
    watchdog.report_phase("saving")
    if checkpoints.newest != checkpoints.name:
        checkpoints.save(engine, task, "last")
    log.say(
        "stopped on request; everything is saved, and the same command with the same run_dir goes on from here"
    )
    raise Preempted(stuck=stuck)


def _compare_ranks(model: Model, step: int) -> None:
    different = diverged(model)
    if different:
        raise TrainingStopped(
            f"after step {step} the ranks hold different parameters: {'; '.join(different[:4])}; checkpoints "
            "since the comparison before it may be affected. Look at the memory and the network of these machines"
        )


def _global_size(parts: list[Batch]) -> int:
    """Samples in the global batch, which every part knows through its share."""
    return round(distributed.world_size() * len(parts) / parts[0].loss_scale)
