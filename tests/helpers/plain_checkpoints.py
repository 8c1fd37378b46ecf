"""Checkpoints of a small model in one process, without DeepSpeed and without data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launch.checkpoints.commit import Pointer
from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints


def plain_checkpoints(folder: Path, step: int, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder, Progress(step=step, epoch_steps=1), keep)


class PlainEngine:
    """What ``save`` asks of an engine, at stage 0 with one process."""

    def __init__(self) -> None:
        self.module = torch.nn.Module()
        self.module.model = torch.nn.Linear(3, 2)
        self.optimizer = torch.optim.Adam(self.module.model.parameters())
        self.torch_autocast_z0_gradscaler = None

    def zero_optimization_stage(self) -> int:
        return 0


class NoPosition:
    """What ``save`` asks of a task: a stream that stands still."""

    def state_dict(self) -> dict[str, Any]:
        return {}


def save_step(folder: Path, step: int, *pointers: Pointer, keep: int = 2) -> Path:
    checkpoints = plain_checkpoints(folder, step, keep)
    return checkpoints.save(PlainEngine(), NoPosition(), *pointers)  # type: ignore[arg-type]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())
