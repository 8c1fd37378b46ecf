"""Human labels of single modalities from a table to the loss, and the file of what a model keeps of
each sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from raw_tables import write_csv

from data_shards.convert import convert
from data_shards.shards.manifest import Labels
from data_shards.sources.raw_dataset import Options
from launch.config import ConfigError, Run, load_recipe, override
from launch.tasks.build import build_model, build_task
from launch.tasks.predictions import Predictions, write_predictions
from launch.tasks.sentiment import SentimentTask

SAMPLES = 24


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with human labels of text and audio, the latter for half of the clips, as CH-SIMS has
    them."""
    folder = tmp_path_factory.mktemp("unimodal")
    rng = np.random.default_rng(0)
    for name, width in (("audio", 5), ("vision", 4)):
        np.save(folder / f"{name}.npy", rng.normal(size=(SAMPLES, 3, width)).astype(np.float32))
    rows = []
    for number in range(SAMPLES):
        label = round(float(rng.uniform(-1, 1)), 1)
        rows.append(
            {
                "id": f"clip {number}",
                "split": ("train", "train", "valid", "test")[number % 4],
                "label": label,
                "label_text": -label,
                "label_audio": label / 2 if number % 2 else "",
                "text": f'so "{number}", he said',
                "tokens": "[2, 5, 6, 3]",
                "audio": f"audio.npy[{number}]",
                "vision": f"vision.npy[{number}]",
            }
        )
    table = write_csv(rows, folder / "clips.csv")
    convert(table, folder / "shards", Options(labels=Labels(low=-1, high=1), text="tokens"))
    return folder / "shards"


def run_of(shards: Path, *changes: str) -> Run:
    run = replace(load_recipe("self_mm/demo"), data=str(shards))
    return override(run, ["metrics=sims", "batch_size=4", *changes])


def trained(task: SentimentTask, run: Run) -> Any:
    """A model whose memory has met every train sample once."""
    model = build_model(run, task.data).train()
    for (batch,) in task.batches(0):
        output = model(batch)
        model.losses(output, batch)
        model.update_memory_bank(model.memory_bank_rows(output, batch))
    return model


def test_human_labels_reach_the_loss(shards: Path) -> None:
    run = run_of(shards, "options.labels=human", "options.tasks=text,audio")
    task = build_task(run)
    assert isinstance(task, SentimentTask)
    assert task.data.unimodal_labels == ("audio", "text")
    record = trained(task, run).sample_record()
    torch.testing.assert_close(record["label_text"], -record["label_fusion"])
    known = ~record["label_audio"].isnan()
    assert known.sum() == 6
    torch.testing.assert_close(record["label_audio"][known], record["label_fusion"][known] / 2)


def test_a_task_without_human_labels_is_refused_by_name(shards: Path) -> None:
    run = run_of(shards, "options.labels=human")
    with pytest.raises(
        ConfigError, match="human labels of vision, and the data have them of audio"
    ):
        build_model(run, build_task(run).data)


def test_labels_and_scores_of_each_epoch_are_a_file(shards: Path, tmp_path: Path) -> None:
    run = run_of(shards)
    task = build_task(run)
    assert isinstance(task, SentimentTask)
    model = trained(task, run)
    task.end_epoch(0, model, tmp_path)
    with np.load(tmp_path / "samples" / "epoch_0001.npz", allow_pickle=False) as kept:
        columns = {name: kept[name] for name in kept.files}
    assert list(columns["id"]) == task.train.ids(range(12))
    views = ("fusion", "text", "audio", "vision")
    assert set(columns) == {"id"} | {f"{kind}_{v}" for kind in ("label", "score") for v in views}
    for name, values in model.sample_record().items():
        np.testing.assert_array_equal(columns[name], values.numpy())


def test_samples_that_nobody_met_are_left_out_of_the_file(shards: Path, tmp_path: Path) -> None:
    run = run_of(shards)
    task = build_task(run)
    assert isinstance(task, SentimentTask)
    model = build_model(run, task.data).train()
    (batch,) = next(iter(task.batches(0)))
    model.update_memory_bank(model.memory_bank_rows(model(batch), batch))
    task.end_epoch(4, model, tmp_path)
    with np.load(tmp_path / "samples" / "epoch_0005.npz", allow_pickle=False) as kept:
        assert list(kept["id"]) == task.train.ids(batch.index.sort().values)


def test_a_model_without_a_record_leaves_no_file(shards: Path, tmp_path: Path) -> None:
    run = run_of(shards, "options.record=false")
    task = build_task(run)
    task.end_epoch(0, build_model(run, task.data), tmp_path)
    assert not list(tmp_path.iterdir())


def test_predictions_carry_the_transcript(shards: Path, tmp_path: Path) -> None:
    task = build_task(run_of(shards))
    assert isinstance(task, SentimentTask)
    records = task._stream("test", shuffle=False).records(range(6))
    scores = np.linspace(-1, 1, 6)
    predictions = Predictions.of(np.arange(6), scores, scores)
    write_predictions(tmp_path / "p.csv", records, predictions, task.manifest.labels)
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table.text) == [f'so "{number}", he said' for number in range(3, 24, 4)]
    without = [{"id": record["id"]} for record in records]
    write_predictions(tmp_path / "p.csv", without, predictions, task.manifest.labels)
    assert "text" not in pd.read_csv(tmp_path / "p.csv")
