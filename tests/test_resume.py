"""No lost work: processes killed at any moment go on and end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, run_ranks
from small_runs import alignment_data, partitioned, sentiment_data, small_run

from launch.checkpoint import Checkpoints
from launch.config import Run
from launch.contents import Stored
from launch.progress import Progress


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentiment_data(tmp_path_factory.mktemp("resume"), 90)


def whole(run: Run, kill: tuple[int, int] | None = None) -> list[float]:
    """On a rank: train to the end, or until rank ``kill[0]`` (-1: all) kills itself before step ``kill[1]``."""
    from core import distributed
    from launch import loop
    from launch.engine import init_processes, shutdown_processes
    from launch.train import prepare

    init_processes(lost_after=20)
    if kill is not None and kill[0] in (-1, distributed.rank()):
        real = loop.train_step

        def die(*arguments: Any) -> Any:
            if arguments[2].step == kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        loop.train_step = die
    with prepare(run, quiet=True) as it:
        for _ in it.epochs:
            pass
        rates = [group["lr"] for group in it.engine.optimizer.param_groups]
    shutdown_processes()
    return rates


def losses(run_dir: Path) -> dict[int, float]:
    """Step to loss, as taken last."""
    events = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return {event["step"]: event["loss"] for event in events if event["kind"] == "train"}


def final(run_dir: Path) -> dict[str, torch.Tensor]:
    folder, _ = Checkpoints(run_dir, Progress()).find("last")
    assert folder is not None
    from launch.checkpoint import read_state

    stored, whole = Stored(folder), {}
    for name, shape in read_state(folder).shapes.items():
        for kind in ("param", "exp_avg", "exp_avg_sq"):
            whole[f"{kind} {name}"] = torch.empty(torch.Size(shape).numel())
            stored.fill(kind, name, 0, whole[f"{kind} {name}"])
    return whole | {f"buffer {name}": stored.whole("buffer", name) for name in stored.names("buffer")}


def of(run: Run, run_dir: Path, **changes: Any) -> Run:
    return replace(run, run_dir=str(run_dir), save_every=2, epochs=2, patience=0, **changes)


@pytest.mark.parametrize(("rank", "stage"), [(1, 2), (-1, 3)])
def test_killed_ranks_go_on_to_the_same_bits(data: Path, tmp_path: Path, rank: int, stage: int):
    run = small_run("self_mm", data, zero_stage=stage, deepspeed=partitioned(tmp_path))
    rates = run_ranks(2, tmp_path / "a", whole, of(run, tmp_path / "whole"))
    with Ranks(2, tmp_path / "b", whole, of(run, tmp_path / "killed"), (rank, 3)) as started:
        codes = started.codes()
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, None)  # alone, rank 0 does not wait for ever
    assert max(losses(tmp_path / "killed")) == 3
    assert run_ranks(2, tmp_path / "c", whole, of(run, tmp_path / "killed")) == rates
    assert "going on at epoch 1, step 2" in (tmp_path / "c/rank-0.txt").read_text()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    expected, found = final(tmp_path / "whole"), final(tmp_path / "killed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_number_of_ranks_and_another_stage_go_on_to_the_same_losses(data: Path, tmp_path: Path):
    run = small_run("hscl", data, zero_stage=1, deepspeed=partitioned(tmp_path))
    rates = run_ranks(2, tmp_path / "a", whole, of(run, tmp_path / "whole"))[0]
    moved = tmp_path / "moved"
    for place, (ranks, stage, last) in enumerate([(2, 2, 3), (3, 3, 5), (1, 0, 7), (2, 1, None)]):
        changed = of(run, moved, zero_stage=stage, max_micro_batch=3 if ranks == 3 else 0)
        if last is None:
            assert run_ranks(ranks, tmp_path / f"m{place}", whole, changed)[0] == pytest.approx(rates, rel=1e-9)
        else:
            with Ranks(ranks, tmp_path / f"m{place}", whole, changed, (-1, last)) as started:
                assert set(started.codes()) == {-signal.SIGKILL}
    assert losses(moved) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_an_alignment_run_goes_on_with_its_proposed_links(tmp_path: Path):
    options = {"iterate_from": 1, "propose_every": 1, "restart_every": 2, "commit_every": 2}
    run = small_run("mclea", alignment_data(tmp_path), task_options=options)
    run = replace(run, epochs=4)
    first = replace(run, run_dir=str(tmp_path / "whole"), patience=0, save_every=1)
    run_ranks(2, tmp_path / "a", whole, first)
    killed = replace(first, run_dir=str(tmp_path / "killed"))
    with Ranks(2, tmp_path / "b", whole, killed, (-1, 7)) as started:
        assert set(started.codes()) == {-signal.SIGKILL}
    run_ranks(2, tmp_path / "c", whole, killed)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_thirty_random_kills_lose_no_more_than_the_steps_since_the_last_save(data: Path, tmp_path: Path):
    """One rank of two is killed at a random time, at any place of the code, and the run is started again."""
    draw = random.Random(0)
    run = small_run("baseline", data, zero_stage=1)
    run = replace(of(run, tmp_path / "killed"), epochs=100_000, keep=3)
    reached = 0
    for attempt in range(30):
        with Ranks(2, tmp_path / f"try-{attempt}", whole, run) as started:
            begun = time.monotonic()
            log = tmp_path / "killed/log.jsonl"
            size = log.stat().st_size if log.exists() else 0
            while not log.exists() or log.stat().st_size == size:  # it trains
                time.sleep(0.05)
                assert time.monotonic() - begun < 120, started.output(0)
            time.sleep(draw.uniform(0, 3))
            os.kill(started.processes[draw.randrange(2)].pid or 0, signal.SIGKILL)
            codes = started.codes(60)
        assert None not in codes, "a rank did not notice that the other is gone"
        steps = losses(tmp_path / "killed")
        assert sorted(steps) == list(range(1, max(steps) + 1))
        folder, complaints = Checkpoints(tmp_path / "killed", Progress()).find("last")
        assert folder is not None
        assert complaints == []
        saved = int(folder.name.split("-")[1])
        assert max(steps) - saved <= run.save_every
        assert saved >= reached
        reached = saved
    assert reached > 30
