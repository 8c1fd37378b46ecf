"""One process of a trial: training that asks before every epoch and never sees test.

Started by ``tune.workers.trial_processes`` with the command line of ``launch/train.py``. Before
each epoch, rank 0 reads ``go`` from its standard input; the end of the input means stop. For each
finished epoch it writes one JSON line to the pipe that it inherited, also for epochs that an
earlier process had finished. So nothing is trained that the search does not want, and what a
scheduler sees does not depend on interruptions.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import torch

from core import distributed
from core.metrics.declared import METRICS
from launch.engine.processes import init_processes, shutdown_processes
from launch.loop import fit
from launch.monitor.rank_command import run_rank
from launch.reports.event_log import read_events
from launch.session import TrainingSession, prepare
from launch.train import parse
from tune.workers.child import run_as_child
from tune.workers.environment import RESULTS


def main(arguments: list[str]) -> int:
    """The exit code of a trial's process."""
    return run_rank(lambda: train_on_demand(arguments))


def train_on_demand(arguments: list[str]) -> None:
    """Train one epoch whenever rank 0 is told to, until the run has ended or no more is wanted."""
    run = parse(arguments)
    init_processes(run.timeout)
    is_first = distributed.rank() == 0
    orders = sys.stdin if is_first else None
    with prepare(run, quiet=True) as session:
        pipe = os.fdopen(int(os.environ[RESULTS]), "w", encoding="utf-8") if is_first else None
        results = epoch_results(session)
        while next_epoch_wanted(orders, session.engine.device):
            result = next(results, None)
            if result is None:
                break
            if pipe is not None:
                pipe.write(json.dumps(result) + "\n")
                pipe.flush()
    shutdown_processes()


def next_epoch_wanted(orders: TextIO | None, device: torch.device) -> bool:
    """Whether to train another epoch; the same on every rank. An end of the orders is a no."""
    told_to_go = orders is not None and orders.readline().strip() == "go"
    votes = torch.tensor(float(told_to_go), device=device)  # only rank 0 ever votes
    return bool(distributed.all_reduce_sum(votes) > 0)


def epoch_results(session: TrainingSession) -> Iterator[dict[str, Any]]:
    """One result per epoch, from the first: read back up to the checkpoint, then trained."""
    for event in logged_epochs(session):
        is_newest = session.progress.epoch == event["epoch"] + 1
        yield epoch_result(session, event, is_newest and has_ended(session))
    for scores in fit(session):
        session.checkpoints.wait()  # the search may copy the run as soon as it hears of the epoch
        yield epoch_result(session, scores, has_ended(session))


def logged_epochs(session: TrainingSession) -> list[dict[str, Any]]:
    """What the log says of the epochs before the checkpoint that this process goes on from."""
    if not (session.run_dir / "log.jsonl").is_file():
        return []
    logged = read_events(session.run_dir).get("epoch", [])
    before = [event for event in logged if event["epoch"] < session.progress.epoch]
    return sorted(before, key=lambda event: event["epoch"])


def has_ended(session: TrainingSession) -> bool:
    return session.progress.finished or session.progress.epoch >= session.run.epochs


def epoch_result(session: TrainingSession, event: dict[str, Any], last: bool) -> dict[str, Any]:
    """What the search is told about an epoch, which it counts from 1."""
    scores = {}
    for name, value in event.items():
        # losses, speed and skipped samples stand there too
        if name.rsplit("/", 1)[-1] in METRICS:
            scores[name] = value
    return {
        "epoch": int(event["epoch"]) + 1,
        "objective": session.task.objective(scores),
        "scores": scores,
        "last": last,
    }


if __name__ == "__main__":
    sys.exit(run_as_child(main))
