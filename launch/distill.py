"""Train a teacher on complete data, then its student: ``deepspeed launch/distill.py tate/mosi
data=DIR run_dir=DIR``.

The student is the run that the command line asks for; the teacher is the same run with nothing
missing and no teacher of its own, in ``run_dir/teacher``. Both go on where they stopped, as with
``launch/train.py``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import safetensors.torch
import torch

from core import distributed
from core.file_access.targets import check_folder
from core.files import write_atomically
from core.models.tate import TATE, TEACHER_OPTIONS, TEACHER_WEIGHTS
from data_shards.missing import Missing
from launch.config import ConfigError, Run
from launch.engine.processes import init_processes, shutdown_processes
from launch.loop import train
from launch.monitor import control_plane
from launch.monitor.lease import held_by_first_rank
from launch.monitor.rank_command import run_rank
from launch.reports.report import best_model
from launch.run_directory import find_run
from launch.tasks.build import build_task
from launch.train import parse

DESCRIPTION = """Train a teacher on complete data, then its student, the run that the command line asks for.

The teacher is the same run with nothing missing, in run_dir/teacher; both go on where they stopped."""


def distill(run: Run) -> dict[str, dict[str, float]]:
    """Train both; the student's scores."""
    if not isinstance(run.options, TATE.Config):
        raise ConfigError(f"only tate learns from a teacher, not {run.model}; use launch/train.py")
    if not run.run_dir:
        raise ConfigError(
            "name the folder of the run, which will hold the teacher too: run_dir=DIR"
        )
    folder = Path(run.run_dir) / "teacher"
    teacher = replace(
        run,
        options=replace(run.options, teacher=""),
        missing=Missing(),
        run_dir=str(folder / "run"),
    )
    student = replace(run, options=replace(run.options, teacher=str(folder)))
    if distributed.rank() == 0:
        check_folder(Path(run.run_dir))
    Path(run.run_dir).mkdir(parents=True, exist_ok=True)
    with held_by_first_rank(Path(run.run_dir)):
        if not (folder / TEACHER_OPTIONS).is_file():
            train(teacher)
            if distributed.rank() == 0:
                export_teacher(teacher, folder)
            if distributed.world_size() > 1:
                control_plane.any_rank(False)  # all meet, and wait for no accelerator
        else:
            find_run(teacher)  # one of other data or settings is refused
        return train(student)


def export_teacher(run: Run, folder: Path) -> None:
    """The best epoch of a finished run as the two files that a student reads; the options come
    last."""
    task = build_task(run)
    model, _ = best_model(run, Path(run.run_dir), task, torch.device("cpu"))
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    write_atomically(folder / TEACHER_WEIGHTS, safetensors.torch.save(weights))
    write_atomically(folder / TEACHER_OPTIONS, json.dumps(asdict(run.options)) + "\n")


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        run = parse(arguments, "distill", DESCRIPTION)
        init_processes(run.timeout)
        distill(run)
        shutdown_processes()

    return run_rank(work)


if __name__ == "__main__":
    sys.exit(main())
