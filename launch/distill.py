"""Train a teacher on complete data, then its student: ``deepspeed launch/distill.py tate/mosi data=DIR run_dir=DIR``.

The student is the run that the command line asks for; the teacher is the same run with nothing missing and no teacher
of its own, in ``run_dir/teacher``. Both go on where they stopped, as with ``launch/train.py``.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from core import distributed
from core.models.tate import TATE, TEACHER_OPTIONS, TEACHER_WEIGHTS
from data_shards.missing import Missing
from launch.config import ConfigError, Run
from launch.engine import init_processes, shutdown_processes
from launch.reports.report import best_model
from launch.session import train
from launch.tasks.build import build_task
from launch.train import exit_code, parse


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
    if not (folder / TEACHER_OPTIONS).is_file():
        train(teacher)
        if distributed.rank() == 0:
            export_teacher(teacher, folder)
        if distributed.world_size() > 1:
            torch.distributed.barrier()
    return train(replace(run, options=replace(run.options, teacher=str(folder))))


def export_teacher(run: Run, folder: Path) -> None:
    """The best epoch of a finished run as the two files that a student reads; the options come last."""
    task = build_task(run)
    model, _ = best_model(run, Path(run.run_dir), task, torch.device("cpu"))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / TEACHER_WEIGHTS,
    )
    partial = folder / f"{TEACHER_OPTIONS}.partial"
    partial.write_text(json.dumps(asdict(run.options)) + "\n", encoding="utf-8")
    os.replace(partial, folder / TEACHER_OPTIONS)


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        run = parse(sys.argv[1:] if arguments is None else arguments)
        init_processes(run.timeout)
        distill(run)
        shutdown_processes()

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
