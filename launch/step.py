"""One optimiser step over this rank's parts of a global batch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core import distributed
from core.batch import Batch
from core.model import GlobalBatchRows, Model
from launch.checkpoints.progress import Progress
from launch.config import Run
from launch.engine import Surrogate, optimizer_step
from launch.monitor import control_plane, watchdog
from launch.monitor.health import Clock
from launch.tasks.base import Task


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and what was written about it."""


@dataclass(frozen=True)
class StepResult:
    """What one step did."""

    losses: dict[str, float]  # name -> mean over the global batch, the same on every rank
    grad_norm: float  # of the global gradient, before clipping


def train_step(
    engine: Any,
    parts: list[Batch],
    progress: Progress,
    run: Run,
    task: Task,
    run_dir: Path,
    clock: Clock,
) -> StepResult:
    """Forward, backward, and the optimiser's step when every loss and the gradient are finite.

    Raises:
        TrainingStopped: on every rank, before the optimiser moved.
    """
    device, step = engine.device, progress.step
    watchdog.report_phase(
        f"at step {step}, computing losses"
    )  # what hangs before here is told from what waits in a loss
    model: Model = engine.module.model
    parts = _with_counts(model, [part.to(device) for part in parts])
    surrogates: list[Surrogate] = []
    contrast: dict[str, Tensor] = {}
    if len(parts) > 1 and run.cache_contrast:
        surrogates, contrast = _contrast_of_all(engine, model, parts, step)
        clock.lap("first_pass")
    totals: dict[str, Tensor] = {}
    records: list[dict[str, Tensor]] = []
    for number, part in enumerate(parts):
        losses, remembered = engine(part, step, surrogates[number] if surrogates else None)
        loss = _sum(losses)
        if surrogates:
            losses.pop("contrast")
        for name, value in losses.items():
            totals[name] = totals.get(
                name, torch.zeros((), device=device)
            ) + value.detach().reshape(()) / len(parts)
        records.append(remembered)
        clock.lap("forward")
        engine.backward(loss)
        clock.lap("backward")
        if number + 1 < len(parts):
            engine.step()
    watchdog.report_phase(f"at step {step}, summing losses")
    means = _mean(totals | contrast)
    clock.lap("exchange")
    taken = StepResult(means, math.nan)
    if not all(math.isfinite(value) for value in means.values()):
        _report_bad_batch(engine, parts, taken, progress, task, run_dir)
    watchdog.report_phase(f"at step {step}, in the optimiser")
    taken = StepResult(means, optimizer_step(engine))
    if (
        not math.isfinite(taken.grad_norm) and run.precision != "fp16"
    ):  # fp16 skips such steps and lowers its scale
        _report_bad_batch(engine, parts, taken, progress, task, run_dir)
    _remember(model, records, parts)
    clock.lap("optimiser")
    return taken


def _with_counts(model: Model, parts: list[Batch]) -> list[Batch]:
    """The parts with ``Model.loss_denominators`` summed over the whole global batch."""
    own = [model.loss_denominators(part) for part in parts]
    if not own[0]:
        return parts
    names = sorted(own[0])
    total = distributed.all_reduce_sum(
        torch.stack([torch.stack([count[name].float() for name in names]) for count in own]).sum(0)
    )
    # a loss divides its local sum by the count; the engine averages over ranks and parts, hence the factor
    factor = distributed.world_size() * len(parts)
    counts = {name: total[place] / factor for place, name in enumerate(names)}
    return [replace(part, loss_denominators=counts) for part in parts]


def _contrast_of_all(
    engine: Any, model: Model, parts: list[Batch], step: int
) -> tuple[list[Surrogate], dict[str, Tensor]]:
    """First of two passes (GradCache, Gao et al., 2021): contrastive losses over all parts, and for each part what has
    their gradient. None when the model has no such losses."""
    with torch.no_grad(), _autocast(engine):
        rows = [model.global_batch_rows(engine.module.run(part, step)) for part in parts]
    if not rows[0].embeddings:
        return [], {}
    whole = GlobalBatchRows.concatenate(rows)
    leaves = {name: values.requires_grad_() for name, values in whole.embeddings.items()}
    target = torch.cat([part.target for part in parts])
    weight = torch.cat([part.weight for part in parts])
    losses = engine.module.global_batch_losses(whole, target, weight)
    total = _sum(losses)
    learns = _has_parameters(total)
    gradients = torch.autograd.grad(total, list(leaves.values()))
    sizes = [len(part) for part in parts]
    # the engine divides by the number of parts, and these gradients are already those of the whole batch
    cached = {n: (g * len(parts)).split(sizes) for n, g in zip(leaves, gradients, strict=True)}

    def surrogate(number: int, embeddings: Mapping[str, Tensor]) -> Tensor:
        loss = torch.stack(
            [(embeddings[name] * parts_of[number]).sum() for name, parts_of in cached.items()]
        ).sum()
        if learns and number == 0:
            # What the losses themselves learn, a temperature say, gets its gradient here: inside of the engine, which
            # at stage 3 has cut it up, and with the first part, which at stage 3 overwrites the last step's gradients.
            fixed = {name: rows.detach() for name, rows in leaves.items()}
            loss = loss + len(parts) * _sum(
                engine.module.global_batch_losses(whole.with_embeddings(fixed), target, weight)
            )
        return loss

    said = {name: value.detach().reshape(()) for name, value in losses.items()}
    return [partial(surrogate, number) for number in range(len(parts))], said


def _sum(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.reshape(()) for value in losses.values()]).sum()


def _has_parameters(loss: Tensor) -> bool:
    """Whether the loss depends on a parameter."""
    ahead, seen = [loss.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        seen.add(node)
        ahead += [before for before, _ in node.next_functions]
    return False


def _autocast(engine: Any) -> AbstractContextManager[Any]:
    """The precision that the engine's own forward runs in."""
    kind = torch.device(engine.device).type
    return torch.autocast(
        kind, dtype=engine.torch_autocast_dtype(), enabled=engine.torch_autocast_enabled()
    )


def _mean(totals: dict[str, Tensor]) -> dict[str, float]:
    """Losses averaged over ranks, in one message."""
    message = distributed.all_reduce_sum(torch.stack([value.double() for value in totals.values()]))
    return {
        name: value / distributed.world_size()
        for name, value in zip(totals, message.tolist(), strict=True)
    }


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
        model.update_memory_bank({name: rows[order] for name, rows in whole.items()})


def _not_finite(engine: Any, parts: list[Batch], step: int, task: Task) -> dict[str, list[str]]:
    """Embedding -> the samples of this rank whose rows of it are not finite. Computed again, to the same values: the
    parameters have not moved, and masks of dropout go by step."""
    found: dict[str, list[str]] = {}
    with torch.no_grad(), _autocast(engine):
        for part in parts:
            found_rows = engine.module.model.global_batch_rows(engine.module.run(part, step))
            for name, rows in found_rows.embeddings.items():
                bad = ~rows.isfinite().all(1)
                if bool((bad & (part.weight > 0)).any()):
                    found.setdefault(name, []).extend(
                        task.sample_ids([replace(part, weight=part.weight * bad)])
                    )
    return found


def _report_bad_batch(
    engine: Any,
    parts: list[Batch],
    taken: StepResult,
    progress: Progress,
    task: Task,
    run_dir: Path,
) -> None:
    """Write which samples made a loss or the gradient non-finite, and stop before the optimiser moves."""
    path = run_dir / f"bad_batch_rank{distributed.rank()}.json"
    bad = _not_finite(engine, parts, progress.step, task)
    body = {
        "epoch": progress.epoch,
        "step": progress.step,
        "losses": {name: str(value) for name, value in taken.losses.items()},
        "gradient_norm": str(taken.grad_norm),
        "samples": task.sample_ids(parts),
        "not_finite": bad,
    }
    path.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    terms = ", ".join(f"{name} {value:g}" for name, value in taken.losses.items())
    total = sum(taken.losses.values())
    named = [
        f"embedding {name} of sample {samples[0]} is not finite" for name, samples in bad.items()
    ]
    named = [text for text in control_plane.gather_text("; ".join(named)) if text]
    what = (
        "the gradient is not finite although the loss is"
        if math.isfinite(total)
        else f"loss became {total}"
    )
    raise TrainingStopped(
        f"{what} in epoch {progress.epoch} at step {progress.step} ({'; '.join([terms, *named])}); "
        f"the batch's sample ids are in {path}; the last checkpoint is untouched"
    )
