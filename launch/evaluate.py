"""Score a finished run again from its checkpoint alone: ``python -m launch.evaluate RUN [data=DIR] [split=test]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from core import distributed
from data_shards.shards.manifest import DataError
from launch.config import ConfigError, Run, from_dict, override
from launch.engine.processes import init_processes, shutdown_processes
from launch.reports.report import best_model
from launch.tasks.build import build_task

USAGE = "usage: python -m launch.evaluate RUN [data=DIR] [split=test] [key=value ...]"


def read_run(run_dir: Path) -> Run:
    """The run that ``config.json`` of a run directory describes."""
    path = run_dir / "config.json"
    if not path.is_file():
        raise ConfigError(f"{run_dir} is no run directory: it has no config.json")
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def evaluate(run_dir: Path, changes: list[str], split: str) -> dict[str, float]:
    """Scores of the best epoch on ``split``."""
    run = override(read_run(run_dir), changes)
    task = build_task(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, _ = best_model(run, run_dir, task, device)
    return task.evaluate(model, split, device)


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    run_dir, changes = Path(words[0]), words[1:]
    split = next((word.partition("=")[2] for word in changes if word.startswith("split=")), "test")
    try:
        init_processes()
        scores = evaluate(
            run_dir, [word for word in changes if not word.startswith("split=")], split
        )
        if distributed.rank() == 0:
            print(json.dumps({split: scores}, indent=1))
        shutdown_processes()
        return 0
    except (ConfigError, DataError, OSError) as error:
        if distributed.rank() == 0:
            print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
