"""Pipes and devices in the place of a run's, a bundle's or a new sample's file: refused by name and
kind, without waiting, at every door behind those of the data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from media_files import write_clip
from torch import nn
from trained_models import untrained_bundle

from core import bundle
from core.command import Refused
from data_shards.extract.clip_table import find_clips
from data_shards.extract.media import clip_seconds
from data_shards.extract.recipe import RECIPE_FILE, read_recipe
from launch.checkpoints.store import read_state
from launch.checkpoints.tensors import load_weights
from launch.command_line import changes_of_file
from launch.config import Run, load_recipe
from launch.engine.deepspeed_config import deepspeed_config
from launch.evaluate import read_run
from launch.predict import main as predict
from launch.predicting.trained import open_trained
from launch.reports.report import read_events
from launch.run_directory import find_run
from launch.tasks.data_record import NAME as DATA
from launch.tasks.data_record import read_record
from launch.tasks.spec_record import NAME as SPEC
from launch.tasks.spec_record import read_spec
from launch.tasks.training_facts import NAME as FACTS
from launch.tasks.training_facts import read_facts
from tune.settings import load_search

RUN = Run(model="hscl", options=None, batch_size=30)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = [(pipe, "a named pipe"), (link_to_pipe, "a named pipe"), (link_to_device, "a device")]


def go_on(folder: Path) -> None:
    find_run(replace(load_recipe("hscl/demo"), data="shards", run_dir=str(folder)))


# file in a folder -> what reads it there
DOORS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "settings": ("settings.json", lambda folder: changes_of_file(folder / "settings.json")),
    "a deepspeed file": (
        "ds.json",
        lambda folder: deepspeed_config(replace(RUN, deepspeed=str(folder / "ds.json")), 1000),
    ),
    "a run that is scored": ("config.json", read_run),
    "a run that goes on": ("config.json", go_on),
    "the record of its data": (DATA, read_record),
    "the shapes of its data": (SPEC, read_spec),
    "its facts": (FACTS, read_facts),
    "its log": ("log.jsonl", read_events),
    "the state of a checkpoint": ("state.json", read_state),
    "weights of a checkpoint": (
        "rank-00000.safetensors",
        lambda folder: load_weights(folder, {}, nn.Linear(1, 1)),
    ),
    "a search": ("search.json", load_search),
    "a recipe of features": (RECIPE_FILE, read_recipe),
    "a clip": ("a.mp4", lambda folder: clip_seconds(folder / "a.mp4", 0.0, None)),
    "a table of clips": ("a.csv", lambda folder: list(find_clips(folder / "a.csv"))),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_a_door_refuses_by_kind(tmp_path: Path, make: Callable[[Path], None], kind: str, door: str):
    name, read = DOORS[door]
    make(tmp_path / name)
    with pytest.raises(Refused, match=rf"{name} is {kind}, and only plain files are read"):
        read(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model."""
    return untrained_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer/tokenizer_config.json"]
)
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_a_bundle_is_refused_by_kind(
    whole: Path, tmp_path: Path, make: Callable[[Path], None], kind: str, name: str, capsys: Any
):
    folder = Path(shutil.copytree(whole, tmp_path / "bundle"))
    (folder / name).unlink()
    make(folder / name)
    assert predict([str(folder), "--text", "good"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} is {kind}, and only plain files are read" in line
    if "tokenizer" not in name:
        with pytest.raises(Refused, match=f"{name} is {kind}"):
            bundle.load(folder)


@pytest.mark.parametrize("name", ["new.csv", "new.jsonl", "new.parquet", "new.txt"])
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_what_is_to_be_scored_is_refused_by_kind(
    whole: Path, tmp_path: Path, make: Callable[[Path], None], kind: str, name: str, capsys: Any
):
    make(tmp_path / name)
    out = tmp_path / "scores.csv"
    assert predict([str(whole), str(tmp_path / name), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{name} is {kind}, and only plain files are read" in line
    assert not out.exists()


def test_the_transcript_beside_a_clip_is_a_plain_file_or_none(tmp_path: Path):
    write_clip(tmp_path / "a.m4a", 0.2, has_pictures=False)
    os.mkfifo(tmp_path / "a.txt")
    (row,) = find_clips(tmp_path)
    assert row.clip.transcript == ""


def test_code_of_a_bundle_is_never_run(whole: Path, tmp_path: Path, monkeypatch: Any, capsys: Any):
    """Whatever is answered on the standard input."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = Path(shutil.copytree(whole, tmp_path / "bundle"))
    (folder / "tokenizer" / "own.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
    )
    path = folder / "tokenizer" / "tokenizer_config.json"
    body = path.read_text().rstrip()
    assert body.endswith("}")
    path.write_text(body[:-1] + ', "auto_map": {"AutoTokenizer": ["own.T", null]}}')
    assert predict([str(folder), "--text", "good"]) == 2
    assert "tokenizer_config.json asks for Python code of its own" in capsys.readouterr().err
    assert not (folder / "tokenizer" / "ran").exists()
    assert open_trained(str(whole)).name == "baseline"
