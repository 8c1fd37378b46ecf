"""No lost work: processes killed at any moment go on and end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_trainings import partitioned, stored_tensors
from ranks import Ranks, run_ranks
from shard_folders import alignment_shards, sentiment_shards
from small_models import small_run

from launch.checkpoints.progress import Progress
from launch.checkpoints.store import Checkpoints
from launch.config import Run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentiment_shards(tmp_path_factory.mktemp("resume"), 90)


def whole(run: Run, kill: tuple[int, int] | None = None, how: str = "step") -> list[float]:
    """On a rank: train to the end, or until something happens to rank ``kill[0]`` (-1: all) at step
    ``kill[1]``.

    Args:
        how: it kills itself before the "step" or amid the "write" of its part of the next
            checkpoint, or from there on its disk is "full".
    """
    from core import distributed
    from launch import loop
    from launch.checkpoints import store
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.monitor.rank_command import run_rank
    from launch.session import prepare

    def die(*arguments: Any) -> Any:
        if how == "write":
            body = b"".join(arguments[1])
            arguments[0].write_bytes(body[: len(body) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    init_processes(lost_after=20)
    if kill is not None and kill[0] in (-1, distributed.rank()):
        real = loop.train_step

        def step(*arguments: Any) -> Any:
            if arguments[0].progress.step == kill[1]:
                arguments[0].checkpoints.wait()  # so that it is known from where it goes on
                if how == "step":
                    die()
                elif how == "write":
                    store.write_file = die
                else:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            return real(*arguments)

        loop.train_step = step
    rates: list[float] = []

    def work() -> None:
        with prepare(run, quiet=True) as session:
            list(fit(session))
            rates.extend(group["lr"] for group in session.engine.optimizer.param_groups)

    code = run_rank(work)
    if code:
        raise SystemExit(code)
    shutdown_processes()
    return rates


def losses(run_dir: Path) -> dict[int, float]:
    """Step to loss, as taken last."""
    events = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return {event["step"]: event["loss"] for event in events if event["kind"] == "train"}


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
    expected, found = stored_tensors(tmp_path / "whole"), stored_tensors(tmp_path / "killed")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_ranks(2, folder / "ranks", whole, of(small_run("self_mm", data), folder / "run"))
    return folder / "run"


DAMAGES = {
    "truncated": lambda body: body[: len(body) // 2],
    "altered": lambda body: body[:-1] + bytes([body[-1] ^ 1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["write", "full", *DAMAGES])
def test_what_befalls_a_checkpoint_costs_steps_but_no_bit(
    data: Path, uninterrupted: Path, tmp_path: Path, how: str
):
    run = of(small_run("self_mm", data), tmp_path / "run")
    kill = ((-1, 5), "step") if how in DAMAGES else ((1, 3), how)
    with Ranks(2, tmp_path / "a", whole, run, *kill) as started:
        codes = started.codes()
    assert None not in codes
    assert 0 not in codes
    newest, complaints = Checkpoints(tmp_path / "run", Progress()).find("last")
    assert newest is not None
    assert complaints == []
    if how in DAMAGES:
        part = newest / "rank-00001.safetensors"
        part.write_bytes(DAMAGES[how](part.read_bytes()))
    elif how == "full":
        assert codes == [4, 4]
        assert "rank 1 on" in started.output(0)
    run_ranks(2, tmp_path / "b", whole, run)
    said = (tmp_path / "b/rank-0.txt").read_text()
    assert "going on at" in said
    assert ("is not what was written" in said) == (how in DAMAGES)
    assert (f"from {newest}" in said) == (how not in DAMAGES)
    assert losses(tmp_path / "run") == losses(uninterrupted)
    expected, found = stored_tensors(uninterrupted), stored_tensors(tmp_path / "run")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_another_number_of_ranks_and_another_stage_go_on_to_the_same_losses(
    data: Path, tmp_path: Path
):
    run = small_run("hscl", data, zero_stage=1, deepspeed=partitioned(tmp_path))
    rates = run_ranks(2, tmp_path / "a", whole, of(run, tmp_path / "whole"))[0]
    moved = tmp_path / "moved"
    for place, (ranks, stage, last) in enumerate([(2, 2, 3), (3, 3, 5), (1, 0, 7), (2, 1, None)]):
        changed = of(run, moved, zero_stage=stage, max_micro_batch=3 if ranks == 3 else 0)
        if last is None:
            assert run_ranks(ranks, tmp_path / f"m{place}", whole, changed)[0] == pytest.approx(
                rates, rel=1e-9
            )
        else:
            with Ranks(ranks, tmp_path / f"m{place}", whole, changed, (-1, last)) as started:
                assert set(started.codes()) == {-signal.SIGKILL}
    assert losses(moved) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_an_alignment_run_goes_on_with_its_proposed_links(tmp_path: Path):
    options = {"iterate_from": 1, "propose_every": 1, "restart_every": 2, "commit_every": 2}
    run = small_run("mclea", alignment_shards(tmp_path), task_options=options)
    run = replace(run, epochs=4)
    first = replace(run, run_dir=str(tmp_path / "whole"), patience=0, save_every=1)
    run_ranks(2, tmp_path / "a", whole, first)
    killed = replace(first, run_dir=str(tmp_path / "killed"))
    with Ranks(2, tmp_path / "b", whole, killed, (-1, 7)) as started:
        assert set(started.codes()) == {-signal.SIGKILL}
    run_ranks(2, tmp_path / "c", whole, killed)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.deep)])
def test_random_kills_lose_no_more_than_the_steps_since_the_last_save(
    data: Path, tmp_path: Path, kills: int
):
    """One rank of two is killed at a random time, at any place of the code, and the run is started
    again."""
    draw = random.Random(0)
    run = small_run("baseline", data, zero_stage=1)
    run = replace(of(run, tmp_path / "killed"), epochs=100_000, keep=3)
    reached = 0
    for attempt in range(kills):
        with Ranks(2, tmp_path / f"try-{attempt}", whole, run) as started:
            begun = time.monotonic()
            log = tmp_path / "killed/log.jsonl"
            size = log.stat().st_size if log.exists() else 0
            while not log.exists() or log.stat().st_size == size:  # it trains
                time.sleep(0.05)
                assert time.monotonic() - begun < 240, started.output(0)
            time.sleep(draw.uniform(0, 3))
            os.kill(started.processes[draw.randrange(2)].pid or 0, signal.SIGKILL)
            codes = started.codes()
        assert None not in codes, "a rank did not notice that the other is gone"
        steps = losses(tmp_path / "killed")
        assert sorted(steps) == list(range(1, max(steps) + 1))
        folder, complaints = Checkpoints(tmp_path / "killed", Progress()).find("last")
        assert folder is not None
        assert complaints == []
        saved = int(folder.name.split("-")[1])
        # the checkpoint under way is lost, too
        assert max(steps) - saved <= 2 * run.save_every
        assert saved >= reached
        reached = saved
    assert reached > kills
