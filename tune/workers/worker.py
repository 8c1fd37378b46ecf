"""One process of a trial: ``launch.train`` that asks before every epoch and never sees the test split.

Started by ``tune.workers.processes`` with the command line of ``launch/train.py``. Rank 0 reads ``go`` or ``stop``
from its standard input before each epoch and writes one JSON line per finished epoch to the pipe that it was given,
those of epochs that an earlier process had finished included. So nothing is trained that the search does not want, and
what a scheduler sees does not depend on interruptions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import torch

from core import distributed
from launch.engine import init_processes, shutdown_processes
from launch.reports.report import read_events
from launch.session import TrainingSession, prepare
from launch.train import exit_code, parse
from tune.workers.child import die_with_parent, enter_folder, serve_store
from tune.workers.environment import RESULTS


def past(it: TrainingSession) -> list[dict[str, Any]]:
    """What the log says of the epochs before the checkpoint that this process goes on from."""
    if not (it.run_dir / "log.jsonl").is_file():
        return []
    events = [
        event
        for event in read_events(it.run_dir).get("epoch", [])
        if event["epoch"] < it.progress.epoch
    ]
    return sorted(events, key=lambda event: event["epoch"])


def results(it: TrainingSession) -> Iterator[dict[str, Any]]:
    """One result per epoch, from the first: read back where there is a checkpoint behind it, else trained."""
    for event in past(it):
        last = it.progress.epoch == event["epoch"] + 1 and over(it)
        yield result(it, event, last)
    for scores in it.epochs:
        yield result(it, scores, over(it))


def over(it: TrainingSession) -> bool:
    return it.progress.finished or it.progress.epoch >= it.run.epochs


def result(it: TrainingSession, event: dict[str, Any], last: bool) -> dict[str, Any]:
    skipped = ("kind", "step", "time", "epoch", "steps")
    numbers = {
        key: value
        for key, value in event.items()
        if key not in skipped and isinstance(value, int | float)
    }
    objective = it.task.objective(numbers)
    return {
        "epoch": int(event["epoch"]) + 1,
        "objective": objective,
        "scores": numbers,
        "last": last,
    }


def wanted(orders: TextIO | None, device: torch.device) -> bool:
    """Whether the next epoch is wanted; the same on every rank. An end of the orders is a no."""
    said = orders is not None and orders.readline().strip() == "go"
    return bool(distributed.all_reduce_sum(torch.tensor(float(said), device=device)) > 0)


def work(arguments: list[str]) -> None:
    store = serve_store()
    run = parse(arguments)
    init_processes(run.timeout)
    first = distributed.rank() == 0
    with prepare(run, quiet=True) as it:
        out = os.fdopen(int(os.environ[RESULTS]), "w", encoding="utf-8") if first else None
        todo = results(it)
        while wanted(sys.stdin if first else None, it.engine.device):
            body = next(todo, None)
            if body is None:
                break
            if out is not None:
                out.write(json.dumps(body) + "\n")
                out.flush()
    shutdown_processes()
    del store


if __name__ == "__main__":
    die_with_parent()
    enter_folder()
    sys.exit(exit_code(lambda: work(sys.argv[1:])))
