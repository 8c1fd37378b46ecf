"""Score a finished run again from its checkpoint alone: ``python -m launch.evaluate RUN [data=DIR]
[--split test]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from core import distributed
from core.environment import threads
from launch.command_line import read, settings_parser
from launch.config import Run, override
from launch.engine.processes import init_processes, shutdown_processes
from launch.monitor.rank_command import run_rank
from launch.reports.report import best_model
from launch.run_directory import CONFIG, naming_settings, recorded_run, recorded_settings
from launch.tasks.build import build_task

DESCRIPTION = "Score a finished run again, from its best checkpoint alone."


def read_run(run_dir: Path) -> Run:
    """The run that ``config.json`` of a run directory describes."""
    return recorded_run(recorded_settings(run_dir), run_dir / CONFIG)


def evaluate(run_dir: Path, changes: list[str], split: str) -> dict[str, float]:
    """Scores of the best epoch on ``split``."""
    run = override(read_run(run_dir), changes)
    threads.use(run.threads)
    with naming_settings(run_dir):
        task = build_task(run)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, _ = best_model(run, run_dir, task, device)
        return task.evaluate(model, split, device)


def main(arguments: list[str] | None = None) -> int:
    def work() -> None:
        usage = "RUN [data=DIR] [key=value ...] [--split test]"
        parser = settings_parser("evaluate", DESCRIPTION, usage)
        parser.add_argument("--split", default="test", help="which split to score")
        line = read(parser, arguments, also_settings=["split"])
        run_dir, split = Path(line.name("a run's directory")), line.options.split
        init_processes()
        scores = evaluate(run_dir, line.changes, split)
        if distributed.rank() == 0:
            print(json.dumps({split: scores}, indent=1))
        shutdown_processes()

    return run_rank(work)


if __name__ == "__main__":
    sys.exit(main())
