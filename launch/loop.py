"""The whole training loop, for every model and every task: epochs, steps, evaluation, checkpoints.

Read from top to bottom: ``train`` runs ``fit``, which trains epoch by epoch; an epoch is
``_train_epoch`` over its batches, and each of its steps is ``train_step``: forward, backward,
optimiser.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor

from core.batch import Batch
from launch.checkpoints.commit import Pointer
from launch.config import Run
from launch.engine.deepspeed_engine import (
    SURROGATE,
    device_guards_step,
    engine_batches,
    optimizer_step,
)
from launch.engine.global_batch import (
    global_batch_size,
    mean_over_ranks,
    update_memory_bank,
    with_loss_denominators,
)
from launch.engine.optimizer import learning_rate_factor, set_learning_rates
from launch.gradient_cache import first_pass, sum_losses
from launch.monitor import watchdog
from launch.monitor.epoch_checks import compare_ranks, warn_of_idle_losses
from launch.monitor.health import Clock, Utilisation, memory, padding_share
from launch.monitor.interruptible_iterator import InterruptibleIterator
from launch.monitor.preemption import Preempted, StopNow
from launch.monitor.step_records import StepRecords, StepResult, refuse_non_finite
from launch.reports import report
from launch.reports.run_log import epoch_line, prefixed
from launch.session import TrainingSession, has_batch_norm, prepare

_LONE_SAMPLE = (
    "a batch is left out: corrupt shards have left one sample of it, and the model's BatchNorm "
    "cannot normalise a single one"
)


def train(run: Run, *, quiet: bool = False) -> dict[str, dict[str, float]]:
    """Train, then evaluate the best checkpoint once on validation and test, and write the
    report."""
    with prepare(run, quiet=quiet) as session:
        for scores in fit(session):
            session.log.say(epoch_line(scores, session.run))
        session.stop.nothing_to_save = True  # from here on a signal ends this process at once
        return report.finish(
            session.run, session.run_dir, session.task, session.log, session.engine.device
        )


def fit(session: TrainingSession) -> Iterator[dict[str, float]]:
    """Train from where ``session.progress`` stands; after each epoch yield its number, losses and
    scores.

    A generator, so that the command line may print the scores and a search may report them and stop
    early, and neither needs a callback. The test split is not in reach here.

    Raises:
        TrainingStopped: a loss or gradient is not finite, or the ranks' parameters have come to
            differ.
        SaveError: a checkpoint could not be written.
        Preempted: a signal asked every rank to stop; everything is saved.
    """
    run, task, model, progress = session.run, session.task, session.model, session.progress
    while not progress.finished and progress.epoch < run.epochs:
        epoch = progress.epoch
        started = time.perf_counter()
        watchdog.report_phase(f"beginning epoch {epoch}")
        task.begin_epoch(epoch, model)
        model.begin_epoch(epoch)
        first_step = progress.epoch_steps
        task.wait_seconds()  # forget what was waited before
        samples = _train_epoch(session)
        seconds = time.perf_counter() - started
        scores = _evaluate(session)
        objective = task.objective(scores)
        improved = objective < progress.best
        if improved:
            progress.best, progress.best_epoch = objective, epoch
        warn_of_idle_losses(session)
        steps = max(1, progress.epoch_steps)
        losses = prefixed("loss", {name: total / steps for name, total in progress.sums.items()})
        waited = task.wait_seconds()
        for remark in task.waiting_remarks(waited, seconds):
            session.log.warn(progress.step, remark)
        speed = {
            "samples_per_second": samples / seconds,
            "data_wait": waited / seconds,
            "seconds": seconds,
            "steps": float(progress.epoch_steps - first_step),
            "skipped_samples": float(task.skipped()),
        }
        record = {"epoch": epoch, **losses, **scores, **speed, **memory(), **model.report()}
        session.log.event("epoch", progress.step, record)
        task.end_epoch(epoch, model, session.run_dir)
        progress.epoch, progress.epoch_steps, progress.sums = epoch + 1, 0, {}
        progress.finished = bool(run.patience) and epoch - progress.best_epoch >= run.patience
        watchdog.report_phase("saving")
        pointers: tuple[Pointer, ...] = ("last", "best") if improved else ("last",)
        session.begin_save(*pointers)
        yield {"epoch": float(epoch), **losses, **scores, **speed}
    progress.finished = True
    session.checkpoints.wait()


def _train_epoch(session: TrainingSession) -> int:
    """The steps that are left of the present epoch; the number of samples they saw, over all
    ranks."""
    run, task, engine, progress = session.run, session.task, session.engine, session.progress
    epoch = progress.epoch
    steps = task.steps(epoch)
    session.log.open_bar(epoch, run.epochs, progress.epoch_steps, steps)
    engine.train()
    batches = InterruptibleIterator(task.batches(epoch))
    clock, utilisation, records = Clock(), Utilisation(run), StepRecords(session)
    needs_company = has_batch_norm(session.model)
    samples = 0
    while True:
        clock.start()
        watchdog.report_phase(f"at step {progress.step}, waiting for data")
        micro_batches = batches.next(lambda: session.stop.requested)
        if session.agree_to_stop():
            records.read()
            _leave(session, stuck=batches.waiting)
        if micro_batches is None:
            break
        clock.lap("data")
        size = global_batch_size(micro_batches)
        if size == 1 and needs_company:
            session.log.warn(progress.step, _LONE_SAMPLE)
            task.mark_consumed()
            continue
        watchdog.report_phase(f"at step {progress.step}")
        factor = learning_rate_factor(run, progress.step, steps * run.epochs, epoch)
        rates = set_learning_rates(engine.optimizer, run, factor)
        with utilisation.counting(size, first=samples == 0):
            result = train_step(session, micro_batches, clock)
        task.mark_consumed()
        progress.step += 1
        progress.epoch_steps += 1
        samples += size
        speed = size / clock.total
        known = {
            **prefixed("lr", rates),
            **prefixed("seconds", clock.seconds),
            "padding": padding_share(micro_batches),
            **utilisation.report(speed),
        }
        records.add(result, micro_batches, known, speed)
        if run.check_every and progress.step % run.check_every == 0:
            compare_ranks(session.model, progress.step)
        if run.save_every and progress.step % run.save_every == 0 and progress.epoch_steps < steps:
            watchdog.report_phase("saving")
            records.read()
            session.begin_save("last")
    records.read()
    batches.close()
    session.log.close_bar()
    return samples


def train_step(session: TrainingSession, micro_batches: list[Batch], clock: Clock) -> StepResult:
    """Forward, backward, and the optimiser's step when every loss and the gradient are finite.

    Where the device itself keeps the optimiser from moving (``device_guards_step``) nothing is
    waited for, and whoever reads the result looks at its numbers.

    Raises:
        TrainingStopped: elsewhere, on every rank, before the optimiser moved.
    """
    engine, model, step = session.engine, session.model, session.progress.step
    # what hangs before here is told from what waits in a loss
    watchdog.report_phase(f"at step {step}, computing losses")
    given = micro_batches
    micro_batches = engine_batches(engine, given)
    micro_batches = with_loss_denominators(model, micro_batches)
    cache = None
    if len(micro_batches) > 1 and session.run.cache_contrast:
        cache = first_pass(engine, micro_batches, step)
        clock.lap("first_pass")
    totals: dict[str, Tensor] = {}
    memory_rows: list[dict[str, Tensor]] = []
    for number, batch in enumerate(micro_batches):
        surrogate = cache.surrogate(number) if cache else None
        losses, rows = engine(batch, step, surrogate)
        loss = sum_losses(losses)
        losses.pop(SURROGATE, None)
        for name, value in losses.items():
            before = totals.get(name, torch.zeros((), device=engine.device))
            totals[name] = before + value.detach().reshape(()) / len(micro_batches)
        memory_rows.append(rows)
        clock.lap("forward")
        engine.backward(loss)
        clock.lap("backward")
        if number + 1 < len(micro_batches):
            engine.step()  # counts the micro-batch; the optimiser moves with the last one
    if cache:
        totals |= cache.losses
    watchdog.report_phase(f"at step {step}, summing losses")
    means = mean_over_ranks(totals)
    names = tuple(totals)
    clock.lap("exchange")
    host_guards = not device_guards_step(engine, session.run)
    if host_guards:
        unknown_norm = means.new_zeros(1)
        result = StepResult(step, names, torch.cat([means, unknown_norm]))
        refuse_non_finite(session, result, micro_batches)
    watchdog.report_phase(f"at step {step}, in the optimiser")
    grad_norm = optimizer_step(engine, session.run, means)
    result = StepResult(step, names, torch.cat([means, grad_norm.to(means)]))
    if host_guards:
        refuse_non_finite(session, result, micro_batches)
    update_memory_bank(model, memory_rows, given)
    clock.lap("optimiser")
    return result


def _evaluate(session: TrainingSession) -> dict[str, float]:
    """Validation scores; a request to stop is heard between two batches."""
    try:
        with session.stop.between_batches_of(session.model):
            return session.task.evaluate(session.model, "valid", session.engine.device)
    except StopNow:
        _leave(session)


def _leave(session: TrainingSession, *, stuck: bool = False) -> NoReturn:
    """Save what is not saved yet, and end the process; all ranks do."""
    session.log.close_bar()
    watchdog.report_phase("saving")
    if session.checkpoints.newest == session.checkpoints.name:
        session.checkpoints.wait()
    else:
        session.save("last")
    session.log.say(
        "stopped on request; everything is saved, and the same command with the same run_dir goes "
        "on from here"
    )
    raise Preempted(stuck=stuck)
