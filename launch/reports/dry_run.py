"""``concord train RECIPE --dry-run``: build everything, take a few steps, say what the run would cost,
and write nothing."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from core import distributed
from core.environment import threads
from core.file_access.targets import check_folder
from launch.config import Run
from launch.engine.deepspeed_engine import start
from launch.engine.optimizer import learning_rate_factor, set_learning_rates
from launch.loop import train_step
from launch.monitor.health import Clock, memory
from launch.reports.run_log import spoken_duration
from launch.run_directory import find_run
from launch.session import TrainingSession, unrecorded
from launch.tasks.build import build_model, build_task

STEPS = 4  # the first may compile, and is told apart
STATES = 3  # numbers that a checkpoint keeps for each parameter: itself and two moments


def dry_run(run: Run) -> None:
    """Print what a run of these settings would be. The test split is not in reach.

    Raises:
        ConfigError: as the training itself would before its first step.
    """
    threads.use(run.threads)
    run, run_dir = find_run(run)
    if distributed.rank() == 0:
        check_folder(run_dir)
    torch.manual_seed(run.seed)
    task = build_task(run)
    task.check_splits()
    model = build_model(run, task.data)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    steps = task.steps(0)
    with tempfile.TemporaryDirectory(prefix="concord-") as folder:
        session = unrecorded(run, task, start(model, run), Path(folder))
        first, others = _take_steps(session)
    step = statistics.median(others or [first])
    used = memory()
    if distributed.rank() > 0:
        return
    print(f"{run.recipe}: {parameters:,} parameters, {task.train_samples():,} train samples")
    print(
        f"{steps} steps an epoch, at most {run.epochs} epochs, on {distributed.world_size()} rank(s)"
    )
    print(f"the first step takes {spoken_duration(first)}, every other {spoken_duration(step)}")
    whole = spoken_duration(step * steps * run.epochs)
    print(
        f"an epoch takes about {spoken_duration(step * steps)}, all of them at most {whole}, plus evaluation"
    )
    print("memory: " + ", ".join(f"{name} {value:.2f}" for name, value in used.items()))
    kept = (run.keep + 1) * STATES * 4 * parameters / 1e6
    print(
        f"it would write into {run_dir}: about {kept:,.0f} MB of checkpoints, and its log and report"
    )
    print("nothing was written")


def _take_steps(session: TrainingSession) -> tuple[float, list[float]]:
    """Seconds of the first step, and of a few others."""
    run, task, engine = session.run, session.task, session.engine
    task.begin_epoch(0, session.model)
    session.model.begin_epoch(0)
    engine.train()
    seconds: list[float] = []
    batches = iter(task.batches(0))
    for _ in range(STEPS):
        started = time.perf_counter()
        micro_batches = next(batches, None)
        if micro_batches is None:
            break
        factor = learning_rate_factor(run, session.progress.step, STEPS, 0)
        set_learning_rates(engine.optimizer, run, factor)
        clock = Clock()
        clock.start()
        train_step(session, micro_batches, clock)
        session.progress.step += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    close = getattr(batches, "close", None)
    if close is not None:
        close()  # what was prepared ahead is given back
    return (seconds[0], seconds[1:]) if seconds else (0.0, [])
