"""A process that trains one run after the other: what a training imports is imported once.

Started by ``tune.workers.trial_processes``, as the ranks of one world. Rank 0 reads an order per
line, ``{"words": [...], "command": "train"}``, and answers each with a line when the run has come
to its end, its report written. The end of its input means stop. What goes wrong ends the process
with the exit code of the command, as it would have ended that.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from typing import Any

from core import distributed
from launch.distill import distill
from launch.engine.processes import init_processes, shutdown_processes
from launch.loop import train
from launch.monitor import control_plane
from launch.monitor.rank_command import run_rank
from launch.train import parse
from tune.workers.child import run_as_child
from tune.workers.environment import RESULTS


def main(arguments: list[str]) -> int:
    """The exit code."""
    return run_rank(serve_orders)


def serve_orders() -> None:
    """Train until no more is wanted."""
    init_processes()
    is_first = distributed.rank() == 0
    pipe = os.fdopen(int(os.environ[RESULTS]), "w", encoding="utf-8") if is_first else None
    while (order := _next_order()) is not None:
        started = time.perf_counter()
        scores = _obey(order)
        gc.collect()  # the model and its engine know each other
        if pipe is not None:
            seconds = time.perf_counter() - started
            pipe.write(json.dumps({"scores": scores, "seconds": seconds}) + "\n")
            pipe.flush()
    shutdown_processes()


def _next_order() -> dict[str, Any] | None:
    """The same on every rank; None at the end."""
    line = sys.stdin.readline() if distributed.rank() == 0 else ""
    if distributed.world_size() > 1:
        line = control_plane.broadcast_text(line)
    return json.loads(line) if line.strip() else None


def _obey(order: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The scores of the run."""
    words = list(order["words"])
    command = str(order["command"])
    sys.argv = [f"launch.{command}", *words]  # what the run's record says it was started with
    run = parse(words)
    return distill(run) if command == "distill" else train(run, quiet=True)


if __name__ == "__main__":
    sys.exit(run_as_child(main))
