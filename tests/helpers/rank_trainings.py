"""What the ranks of a test execute: trainings without the loop around them, and what they leave
behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from core.batch import Batch
from launch.config import Run


def partitioned(folder: Path) -> str:
    """A DeepSpeed file that makes stage 3 cut up every parameter, the small ones of tests too."""
    path = folder / "partitioned.json"
    path.write_text(json.dumps({"zero_optimization": {"stage3_param_persistence_threshold": 0}}))
    return str(path)


def without_second_half(parts: list[Batch], rank: int, ranks: int, modality: str) -> list[Batch]:
    """The parts without ``modality`` in the second half of the global batch: with two ranks, all
    that rank 1 has."""
    from data_shards.reading.sampler import even_split

    if ranks == 2 and rank == 0:
        return parts
    (part,) = parts
    keep = torch.arange(len(part)) < (0 if ranks == 2 else even_split(len(part), 2)[0].stop)
    mask = {**part.mask, modality: part.mask[modality] & keep[:, None]}  # type: ignore[attr-defined]
    present = {**part.present, modality: part.present[modality] & keep[:, None]}  # type: ignore[attr-defined]
    return [replace(part, mask=mask, present=present)]  # type: ignore[call-arg]


def train_all(runs: list[Run], steps: int, absent: str = "") -> list[dict[str, Any]]:
    """Train each run for ``steps`` on the ranks there are; losses, rates by group and validation
    scores.

    Args:
        absent: a modality that half of each global batch lacks.
    """
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    results = [train_one(run, steps, absent) for run in runs]
    shutdown_processes()
    return results


def first_steps(runs: list[Run], folder: Path) -> None:
    """On a rank: take the first step of each run, and save it below ``folder`` under the run's
    place in the list."""
    from launch.engine.processes import init_processes, shutdown_processes

    init_processes()
    for place, run in enumerate(runs):
        train_one(run, 1, save_to=folder / str(place))
    shutdown_processes()


def stored_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """All of the last checkpoint, put together: "param NAME", "exp_avg NAME", "exp_avg_sq NAME",
    "buffer NAME"."""
    from launch.checkpoints.progress import Progress
    from launch.checkpoints.store import Checkpoints, read_state
    from launch.checkpoints.tensors import StoredTensors

    folder, _ = Checkpoints(run_dir, Progress()).find("last")
    assert folder is not None
    stored = StoredTensors(folder)
    whole: dict[str, torch.Tensor] = {}
    for name, shape in read_state(folder).shapes.items():
        for kind in ("param", "exp_avg", "exp_avg_sq"):
            whole[f"{kind} {name}"] = torch.empty(torch.Size(shape).numel())
            stored.fill(kind, name, 0, whole[f"{kind} {name}"])
    for name in stored.names("buffer"):
        buffer = stored.whole("buffer", name)
        assert buffer is not None
        whole[f"buffer {name}"] = buffer
    return whole


def train_one(
    run: Run, steps: int, absent: str = "", save_to: Path | None = None
) -> dict[str, Any]:
    from core import distributed
    from launch.engine.deepspeed_engine import start
    from launch.engine.optimizer import learning_rate_factor, set_learning_rates
    from launch.loop import train_step
    from launch.monitor.health import Clock
    from launch.session import unrecorded
    from launch.tasks.build import build_model, build_task

    torch.manual_seed(run.seed)
    task = build_task(run)
    model = build_model(run, task.data)
    engine = start(model, run)
    session = unrecorded(run, task, engine, save_to or Path("."))
    progress, losses, norms, rates = session.progress, [], [], {}
    for epoch in range(1000):
        task.begin_epoch(epoch, model)
        model.begin_epoch(epoch)
        engine.train()
        for parts in task.batches(epoch):
            if absent:
                parts = without_second_half(
                    parts, distributed.rank(), distributed.world_size(), absent
                )
            rates = set_learning_rates(
                engine.optimizer, run, learning_rate_factor(run, progress.step, steps, epoch)
            )
            result = train_step(session, parts, Clock())
            progress.step += 1
            losses.append(sum(result.losses.values()))
            norms.append(result.grad_norm)
            if progress.step == steps:
                if save_to is not None:
                    session.save("last")
                scores = task.evaluate(model, "valid", engine.device)
                return {"losses": losses, "norms": norms, "rates": rates, "scores": scores}
    raise AssertionError("an epoch has no steps")
