"""Training runs read what the stream's order says: on any number of ranks, after kills, and past
damaged shards."""

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
from ranks import Ranks, run_ranks
from shard_folders import sentiment_shards
from small_models import small_run

from data_shards.stream import Stream
from launch.config import Run

EPOCHS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentiment_shards(tmp_path_factory.mktemp("data"), 120)


def watched(run: Run, seen: str, kill_at: int = -1) -> list[dict[str, float]]:
    """On a rank: train to the end; what each step trains on goes to a file. All ranks kill
    themselves at one step.

    Returns:
        The "epoch" events.
    """
    from core import distributed
    from launch import loop
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.session import prepare

    init_processes(lost_after=20)
    real = loop.train_step
    path = Path(seen) / f"{distributed.world_size()}-{distributed.rank()}-{time.time_ns()}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:

        def record(session: Any, parts: list[Any], *rest: Any) -> Any:
            step = session.progress.step
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            samples = [int(at) for part in parts for at in part.index[part.weight > 0]]
            file.write(json.dumps([step, samples]) + "\n")
            file.flush()
            return real(session, parts, *rest)

        loop.train_step = record
        with prepare(run, quiet=True) as session:
            scores = list(fit(session))
    shutdown_processes()
    return scores


def batches(seen: Path) -> dict[int, list[int]]:
    """Step -> its samples over all ranks, sorted; every rank of these processes has seen the same
    steps."""
    ranks = [dict(map(json.loads, path.read_text().splitlines())) for path in seen.iterdir()]
    assert all(steps.keys() == ranks[0].keys() for steps in ranks)
    return {step: sorted(sum((steps[step] for steps in ranks), [])) for step in ranks[0]}


def planned(run: Run) -> dict[int, list[int]]:
    """What the order says, read without a trainer."""
    stream = Stream(run.data, "train", global_batch=run.batch_size, seed=run.seed, prefetch=0)
    steps = [
        sorted(part.index.tolist())
        for epoch in range(run.epochs)
        for (part,) in stream.epoch(epoch)
    ]
    return dict(enumerate(steps))


def of(run: Run, run_dir: Path, **changes: Any) -> Run:
    return replace(run, run_dir=str(run_dir), save_every=2, epochs=EPOCHS, patience=0, **changes)


def test_a_killed_run_goes_on_with_the_rest_on_another_number_of_ranks(data: Path, tmp_path: Path):
    """3, 2 and 1 ranks in turn; the model that comes out was trained on each sample once per
    epoch."""
    run = of(small_run("hscl", data), tmp_path / "run")
    expected = planned(run)
    draw = random.Random(3)
    kept: dict[int, list[int]] = {}  # what the model at hand was trained on
    start = 0
    for ranks in (3, 2):
        kill_at = draw.randint(start + 1, start + len(expected) // 3)
        seen = tmp_path / f"seen-before-{kill_at}"
        with Ranks(
            ranks, tmp_path / f"killed-at-{kill_at}", watched, run, str(seen), kill_at
        ) as started:
            assert set(started.codes()) == {-signal.SIGKILL}
        found = batches(seen)
        assert sorted(found) == list(range(start, kill_at))
        kept = {step: samples for step, samples in kept.items() if step < start} | found
        saved = [
            int(folder.name.split("-")[1])
            for folder in (tmp_path / "run/checkpoints").glob("step-*")
        ]
        start = max(saved, default=0)
        # a checkpoint that was under way is lost too
        assert 0 <= kill_at - start < 2 * run.save_every
    run_ranks(1, tmp_path / "last", watched, run, str(tmp_path / "seen-last"))
    found = batches(tmp_path / "seen-last")
    assert min(found) == start
    kept = {step: samples for step, samples in kept.items() if step < start} | found
    assert kept == expected
    once = list(range(sum(map(len, expected.values())) // EPOCHS))
    steps = len(expected) // EPOCHS
    for epoch in range(EPOCHS):
        assert (
            sorted(sum((kept[step] for step in range(epoch * steps, (epoch + 1) * steps)), []))
            == once
        )


def test_ranks_leave_out_the_same_damaged_shard_and_log_its_samples(data: Path, tmp_path: Path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for path in data.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    tar = folder / "train-000001.tar"
    body = bytearray(tar.read_bytes())
    body[700] ^= 1
    tar.write_bytes(body)
    run = of(
        small_run("hscl", folder), tmp_path / "run", on_corrupt="skip", max_skipped_fraction=0.3
    )
    run_ranks(2, tmp_path / "ranks", watched, run, str(tmp_path / "seen"))
    assert sorted(sum(batches(tmp_path / "seen").values(), [])) == sorted(
        2 * [*range(16), *range(32, 72)]
    )
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [event["skipped_samples"] for event in events if event["kind"] == "epoch"] == [16, 16]
    assert "skipping 16 samples" in (tmp_path / "ranks/rank-1.txt").read_text()
