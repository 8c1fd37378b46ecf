"""How often the ranks wait for each other in a step: counted, for each costs more the more ranks
there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ranks import run_ranks
from small_models import small_run

from launch.config import Run

MOST = 8  # of a step at stage 0
COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "gather",
    "reduce",
    "reduce_scatter_tensor",
    "scatter",
    "send",
    "isend",
)


def counting(calls: Counter[str]) -> None:
    """Count every collective of this process from now on."""

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return real(*arguments, **options)

        return call

    for name in COLLECTIVES:
        call = watched(name, getattr(dist, name))
        setattr(dist, name, call)
        setattr(dist.distributed_c10d, name, call)  # DeepSpeed calls some of them there


def collectives_of_steps(run: Run, steps: int) -> list[dict[str, int]]:
    """On a rank: the collectives of each step, the vote whether to stop included."""
    calls: Counter[str] = Counter()
    counting(calls)
    import torch

    from launch.engine.deepspeed_engine import start
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import train_step
    from launch.monitor.health import Clock
    from launch.session import unrecorded
    from launch.tasks.build import build_model, build_task

    init_processes()
    torch.manual_seed(run.seed)
    task = build_task(run)
    engine = start(build_model(run, task.data), run)
    session = unrecorded(run, task, engine, Path("."))
    engine.train()
    found = []
    for _, micro_batches in zip(range(steps), task.batches(0), strict=False):
        calls.clear()
        assert not session.agree_to_stop()
        train_step(session, micro_batches, Clock())
        session.progress.step += 1
        found.append(dict(calls))
    shutdown_processes()
    return found


def test_a_step_of_three_contrasts_asks_the_other_ranks_eight_times_at_most(
    coded_shards: Path, tmp_path: Path
):
    run = small_run("hscl", coded_shards, zero_stage=0, batch_size=16)
    of_ranks = run_ranks(2, tmp_path / "ranks", collectives_of_steps, run, 3)
    for steps in of_ranks:
        for step in steps:
            assert 4 <= sum(step.values()) <= MOST, step
            assert step == steps[0]
