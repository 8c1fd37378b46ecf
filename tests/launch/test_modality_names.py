"""Modalities by any name: models that take them, roles for those that do not, and every name that
is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from raw_tables import write_csv
from small_models import SENTIMENT, small_run

from core.command import Refused
from core.model import DataSpec
from data_shards.codebook import write as write_codebook
from data_shards.convert import convert
from data_shards.shards.manifest import Labels
from data_shards.sources.raw_dataset import Options
from launch.config import ConfigError, Roles, Run, load_recipe, override
from launch.tasks.build import build_model, build_task
from launch.tasks.sentiment import SentimentTask

SAMPLES = 24


def face_shards(folder: Path, **options: Any) -> Path:
    """Shards of a table with audio that says nothing, and face that says everything; text as
    ids."""
    rng = np.random.default_rng(0)
    labels = rng.uniform(-3, 3, SAMPLES).astype(np.float32)
    face = np.stack([labels, -labels], axis=1)[:, None].repeat(3, 1)
    np.save(folder / "face.npy", face)
    np.save(folder / "audio.npy", rng.normal(size=(SAMPLES, 4, 5)).astype(np.float32))
    rows = []
    for number, label in enumerate(labels):
        rows.append(
            {
                "id": f"s{number}",
                "split": ("train", "train", "valid", "test")[number % 4],
                "label": label,
                "label_face": label,
                "tokens": "[2, 5, 6, 3]",
                "audio": f"audio.npy[{number}]",
                "face": f"face.npy[{number}]",
            }
        )
    table = write_csv(rows, folder / "faces.csv")
    convert(table, folder / "shards", Options(labels=Labels(low=-3, high=3), **options))
    return folder / "shards"


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = face_shards(tmp_path_factory.mktemp("faces"))
    write_codebook(folder, clusters=4)
    return folder


def run_of(model: str, data: Path, *changes: str) -> Run:
    return override(replace(load_recipe(f"{model}/demo"), data=str(data)), list(changes))


def first_batch(task: SentimentTask) -> Any:
    return next(iter(task.batches(0)))[0]


@pytest.mark.parametrize("model", ["baseline", "cenet"])
def test_a_modality_of_any_name_is_read(model: str, faces: Path) -> None:
    run = run_of(model, faces, "options.modalities=text,audio,face")
    task = build_task(run)
    network = build_model(run, task.data).eval()
    batch = first_batch(task)
    assert task.remarks(network) == []
    score = network(batch).score
    changed = {**batch.frames, "face": -batch.frames["face"]}
    assert not torch.allclose(network(replace(batch, frames=changed)).score, score)


@pytest.mark.parametrize("model", ["hscl", "self_mm", "tate", "tfr_net"])
def test_a_model_with_roles_says_so_and_reads_a_field_in_one(model: str, faces: Path) -> None:
    with pytest.raises(ConfigError, match="roles.vision=face"):
        run_of(model, faces, "options.modalities=audio,face")
    run = run_of(model, faces, "roles.vision=face")
    task = build_task(run)
    network = build_model(run, task.data)
    batch = first_batch(task)
    assert task.data.features == {"text": 0, "audio": 5, "vision": 2}
    assert set(batch.frames) == set(task.data.features)
    assert torch.equal(batch.unimodal_labels["vision"], batch.label)
    assert network.eval()(batch).score.isfinite().all()


def test_what_nobody_reads_is_said(faces: Path) -> None:
    run = run_of("baseline", faces, "options.modalities=text,audio")
    task = build_task(run)
    (said,) = task.remarks(build_model(run, task.data))
    assert "does not read face" in said
    assert "roles.vision=face" in said


@pytest.mark.parametrize("model", SENTIMENT)
def test_frames_of_any_name_are_dropped(model: str, faces: Path) -> None:
    every_frame = ("missing.protocol=frames", "missing.rate=1", "missing.train=fixed")
    run = run_of(model, faces, *every_frame, "roles.vision=face")
    batch = first_batch(build_task(run))
    assert not batch.present["vision"].any()
    named = run_of("baseline", faces, *every_frame)
    assert not first_batch(build_task(named)).present["face"].any()


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("baseline", "options.modalities=text,fase", "the data has text, audio, face.*did you mean 'face'"),
        ("baseline", "options.modalities=audio,audio", "names a modality twice"),
        ("baseline", "roles.vision=fase", "roles names fase, but the data has .*mean 'face'"),
        ("baseline", "roles.vision=label", "roles names label, but the data has"),
        ("baseline", "roles.vission=face", "did you mean 'vision'"),
        ("self_mm", "options.modalities=text,vison", "did you mean 'vision'"),
        ("cenet", "options.memory=txt,audoi", "options.memory names txt, .*did you mean 'text'"),
        ("cenet", "options.memory=text,audoi", "options.memory names audoi, .*mean 'audio'"),
        ("hscl", "missing.modalities=vison", "missing.modalities names vison, but the data has"),
        ("hscl", "missing.modalities=fase", "missing.modalities names fase, .*mean 'face'"),
        ("hscl", "missing.sets=audoi+text", "missing.sets names audoi, .*mean 'audio'"),
        ("hscl", 'missing.legacy_length={"txt": 50}', "legacy_length names txt, .*mean 'text'"),
        ("hscl", "options.projection=liner", "did you mean 'linear'"),
        ("hscl", "precision=bf61", "did you mean 'bf16'"),
    ],
)  # fmt: skip
def test_names_that_are_none_are_refused_with_the_nearest(
    model: str, change: str, message: str, faces: Path
) -> None:
    def start() -> None:
        run = run_of(model, faces, change)
        build_model(run, build_task(run).data)

    with pytest.raises(Refused, match=message):
        start()


def test_two_roles_of_one_field_are_refused_and_an_exchange_is_not(faces: Path) -> None:
    run = run_of("baseline", faces, "options.modalities=audio,vision")
    both = replace(run, roles=Roles(audio="face", vision="face"))
    with pytest.raises(ConfigError, match="roles.audio and roles.vision are both 'face'"):
        build_task(both)
    exchanged = build_task(replace(run, roles=Roles(audio="face", vision="audio")))
    assert exchanged.data.features == {"text": 0, "vision": 5, "audio": 2}


def test_a_name_that_modules_cannot_have_is_refused(spec: DataSpec) -> None:
    data = replace(spec, features=spec.features | {"values": 3})
    run = run_of("cenet", Path("nowhere"), "options.modalities=text,values")
    with pytest.raises(ConfigError, match="convert again with --rename values=NAME"):
        build_model(run, data)


def test_a_run_that_names_nothing_is_as_before(small_shards: Path) -> None:
    """Usual names in, usual names out, in the order of the fields."""
    task = build_task(small_run("hscl", small_shards))
    assert list(task.data.features) == ["text", "audio", "vision"]
    assert list(first_batch(task).frames) == ["text", "audio", "vision"]
