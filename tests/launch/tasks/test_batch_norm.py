"""A BatchNorm never sees a batch of one sample, whatever leaves it alone: a batch size, samples that
are left out, or shards that are corrupt."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from foreign_tars import clips, write_table
from ranks import run_ranks
from small_models import small_options, small_run

from data_shards.convert import convert
from data_shards.shards.manifest import Labels, read_manifest
from data_shards.sources.raw_dataset import Options
from launch.config import Run
from launch.tasks.build import build_task

CORRUPT = ("train-000000.tar", "train-000001.tar")


def train(run: Run) -> list[dict[str, float]]:
    """On a rank: the epochs of a run."""
    from launch.engine.processes import init_processes, shutdown_processes
    from launch.loop import fit
    from launch.session import prepare

    init_processes()
    with prepare(run, quiet=True) as session:
        epochs = list(fit(session))
    shutdown_processes()
    return epochs


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [event for event in lines if event["kind"] == kind]


def test_a_sample_that_corrupt_shards_have_left_alone_is_left_out_and_said(
    coded_shards: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(coded_shards, tmp_path / "data"))
    for name in CORRUPT:
        body = bytearray((data / name).read_bytes())
        body[700] ^= 1
        (data / name).write_bytes(body)
    whole = sum(
        shard.samples for shard in read_manifest(data).splits["train"] if shard.name not in CORRUPT
    )
    assert whole == 4
    run = small_run("tfr_net", data, batch_size=8, epochs=1, seed=2)
    run = replace(run, options=small_options("tfr_net", norm="batch"))
    run = replace(run, run_dir=str(tmp_path / "run"), on_corrupt="skip", max_skipped_fraction=0.95)
    run_ranks(1, tmp_path / "ranks", train, run)
    said = [event["text"] for event in events(tmp_path / "run", "warning")]
    alone = [text for text in said if "corrupt shards have left one sample of it" in text]
    steps = sum(epoch["steps"] for epoch in events(tmp_path / "run", "epoch"))
    assert alone
    assert steps
    assert 2 * steps + len(alone) <= whole  # a step has two samples or more


def test_samples_that_are_left_out_do_not_count(tmp_path: Path) -> None:
    made = clips()
    for arrays in made["train"][:3]:
        for name in ("text", "audio", "vision"):
            arrays.pop(name, None)
    table = write_table(made, tmp_path / "raw")
    convert(table, tmp_path / "data", Options(labels=Labels(low=1, high=5)))
    run = small_run("baseline", tmp_path / "data")
    task = build_task(run)
    every = len(made["train"])
    assert task.train_samples() == task.data.num_train == every
    without = replace(run, loading=replace(run.loading, empty="leave_out"))
    assert build_task(without).train_samples() == every - 3
