"""The whole training loop, for every model and every task.

A generator: it yields the validation scores of each epoch, so that the command line may print them and a search may
report them and stop early, and neither needs a callback. The test split is not in reach here.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.batch import Batch
from core.model import Model
from launch.checkpoint import Checkpoints
from launch.config import Run
from launch.engine import learning_rate_factor, set_learning_rates
from launch.runlog import RunLog
from launch.signals import Stop
from launch.task import Task


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and what was written about it."""


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    epoch: int = 0  # the epoch in hand
    step: int = 0  # optimiser steps taken
    best: float = math.inf  # lowest badness so far
    best_epoch: int = -1
    finished: bool = False
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's losses so far
    epoch_steps: int = 0  # steps of this epoch so far


def fit(
    engine: Any, task: Task, run: Run, run_dir: Path, log: RunLog, checkpoints: Checkpoints, stop: Stop
) -> Iterator[dict[str, float]]:
    """Train from where ``checkpoints.progress`` stands; after each epoch yield its number, losses and scores.

    Raises:
        TrainingStopped: a loss or gradient is not finite.
        Preempted: a signal asked every rank to stop; everything is saved.
    """
    model: Model = engine.module.model
    progress = checkpoints.progress
    while not progress.finished and progress.epoch < run.epochs:
        epoch, started = progress.epoch, time.perf_counter()
        task.begin_epoch(epoch, model)
        model.begin_epoch(epoch)
        steps = task.steps(epoch)
        log.open_bar(epoch, run.epochs, progress.epoch_steps, steps)
        engine.train()
        first_step, samples = progress.epoch_steps, 0
        task.wait_seconds()
        for parts in task.batches(epoch):
            step_started = time.perf_counter()
            rates = set_learning_rates(engine, run, learning_rate_factor(run, progress.step, steps * run.epochs, epoch))
            losses = train_step(engine, model, parts, progress, run, task, run_dir, stop)
            progress.step += 1
            progress.epoch_steps += 1
            for name, value in losses.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            size = _global_size(parts)
            samples += size
            seconds = time.perf_counter() - step_started
            log.advance(losses, size / seconds)
            values = {"loss": sum(losses.values()), **{f"loss_{name}": value for name, value in losses.items()}}
            values |= {f"lr_{name}": rate for name, rate in rates.items()}
            norm = engine.get_global_grad_norm()
            if norm is not None:
                values["grad_norm"] = float(norm)
            log.event("train", progress.step, values | {"samples_per_second": size / seconds})
            if stop.agreed:
                checkpoints.save(engine, task, "last")
                stop.leave(log)
            if run.save_every and progress.step % run.save_every == 0 and progress.epoch_steps < steps:
                checkpoints.save(engine, task, "last")
        log.close_bar()
        seconds = time.perf_counter() - started
        scores = task.evaluate(model, "valid", engine.device)
        badness = task.badness(scores)
        improved = badness < progress.best
        if improved:
            progress.best, progress.best_epoch = badness, epoch
        means = {f"loss_{name}": value / max(1, progress.epoch_steps) for name, value in progress.sums.items()}
        speed = {
            "samples_per_second": samples / seconds,
            "data_wait": task.wait_seconds() / seconds,
            "seconds": seconds,
            "steps": float(progress.epoch_steps - first_step),
        }
        log.event("epoch", progress.step, {"epoch": epoch, **means, **scores, **speed, **model.report()})
        progress.epoch, progress.epoch_steps, progress.sums = epoch + 1, 0, {}
        progress.finished = bool(run.patience) and epoch - progress.best_epoch >= run.patience
        checkpoints.save(engine, task, "last", "best") if improved else checkpoints.save(engine, task, "last")
        yield {"epoch": float(epoch), **means, **scores, **speed}
        if stop.agree(engine.device):
            stop.leave(log)
    progress.finished = True


def train_step(
    engine: Any, model: Model, parts: list[Batch], progress: Progress, run: Run, task: Task, run_dir: Path, stop: Stop
) -> dict[str, float]:
    """One optimiser step over this rank's parts of a global batch; the global mean of every loss."""
    device, step = engine.device, progress.step
    parts = _with_counts(model, [part.to(device) for part in parts])
    cached: dict[str, list[Tensor]] | None = None
    contrast: dict[str, Tensor] = {}
    if len(parts) > 1 and run.cache_contrast:
        cached, contrast = _contrast_of_all(engine, model, parts, step)
    totals: dict[str, Tensor] = {}
    records: list[dict[str, Tensor]] = []
    for number, part in enumerate(parts):
        cotangents = None if cached is None else {name: rows[number] for name, rows in cached.items()}
        losses, remembered = engine(part, step, cotangents or None)
        loss = torch.stack([value.reshape(()) for value in losses.values()]).sum()
        if contrast:
            losses.pop("contrast")
        for name, value in losses.items():
            totals[name] = totals.get(name, torch.zeros((), device=device)) + value.detach().reshape(()) / len(parts)
        records.append(remembered)
        engine.backward(loss)
        if number + 1 < len(parts):
            engine.step()
    totals |= contrast
    means = _agree(totals, stop, device)
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    if bad:
        _report_bad_batch(parts, means, progress, task, run_dir)
    engine.step()
    _remember(model, records, parts)
    return means


def _with_counts(model: Model, parts: list[Batch]) -> list[Batch]:
    """The parts with ``Model.counts`` summed over the whole global batch."""
    own = [model.counts(part) for part in parts]
    if not own[0]:
        return parts
    names = sorted(own[0])
    total = distributed.all_reduce_sum(
        torch.stack([torch.stack([count[name].float() for name in names]) for count in own]).sum(0)
    )
    # a loss divides its local sum by the count; the engine averages over ranks and parts, hence the factor
    factor = distributed.world_size() * len(parts)
    counts = {name: total[place] / factor for place, name in enumerate(names)}
    return [replace(part, counts=counts) for part in parts]


def _contrast_of_all(
    engine: Any, model: Model, parts: list[Batch], step: int
) -> tuple[dict[str, list[Tensor]] | None, dict[str, Tensor]]:
    """First of two passes (GradCache, Gao et al., 2021): contrastive losses over all parts, and their gradients with
    respect to each part's embeddings. None when the model has no such losses."""
    with torch.no_grad():
        rows = []
        for part in parts:
            with torch.autocast(
                engine.device.type if hasattr(engine.device, "type") else str(engine.device).split(":")[0],
                dtype=torch.bfloat16,
                enabled=engine.torch_autocast_enabled(),
            ):
                rows.append(model.embeddings(engine.module.run(part, step)))
    if not rows[0]:
        return None, {}
    leaves = {name: torch.cat([row[name] for row in rows]).requires_grad_() for name in rows[0]}
    target = torch.cat([part.target for part in parts])
    weight = torch.cat([part.weight for part in parts])
    losses = model.contrast(leaves, target, weight)
    gradients = torch.autograd.grad(torch.stack([v.reshape(()) for v in losses.values()]).sum(), list(leaves.values()))
    sizes = [len(part) for part in parts]
    # the engine divides by the number of parts, and these gradients are already those of the whole batch
    cached = {n: list((g * len(parts)).split(sizes)) for n, g in zip(leaves, gradients, strict=True)}
    return cached, {name: value.detach().reshape(()) for name, value in losses.items()}


def _agree(totals: dict[str, Tensor], stop: Stop, device: torch.device) -> dict[str, float]:
    """Losses averaged over ranks and, in the same message, whether any rank was asked to stop."""
    names = list(totals)
    message = torch.stack([totals[name].double() for name in names] + [stop.wish(device)])
    message = distributed.all_reduce_sum(message)
    *values, wishes = message.tolist()
    stop.agreed = wishes > 0
    return {name: value / distributed.world_size() for name, value in zip(names, values, strict=True)}


def _remember(model: Model, records: list[dict[str, Tensor]], parts: list[Batch]) -> None:
    """Give the model the records of the whole global batch, in the order of the samples."""
    if not records[0]:
        return
    real = torch.cat([part.weight for part in parts]) > 0
    local = {name: torch.cat([record[name] for record in records])[real] for name in records[0]}
    sizes = distributed.gather_sizes(len(local["index"]), local["index"].device)
    whole = {name: distributed.gather_rows(rows, sizes) for name, rows in local.items()}
    order = torch.argsort(whole["index"])
    with torch.no_grad():
        model.remember({name: rows[order] for name, rows in whole.items()})


def _global_size(parts: list[Batch]) -> int:
    """Samples in the global batch, which every part knows through its share."""
    return round(distributed.world_size() * len(parts) / parts[0].share)


def _report_bad_batch(
    parts: list[Batch], losses: dict[str, float], progress: Progress, task: Task, run_dir: Path
) -> None:
    """Write which samples made the loss non-finite, and stop before the optimiser moves."""
    path = run_dir / f"bad_batch_rank{distributed.rank()}.json"
    body = {
        "epoch": progress.epoch,
        "step": progress.step,
        "losses": {name: str(value) for name, value in losses.items()},
        "samples": task.sample_ids(parts),
    }
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    terms = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    raise TrainingStopped(
        f"loss became {sum(losses.values())} in epoch {progress.epoch} at step {progress.step} ({terms}); "
        f"the batch's sample ids are in {path}; the last checkpoint is untouched"
    )
