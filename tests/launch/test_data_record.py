"""What a run was trained on, and data of another kind, which no command computes anything with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_models import small_run

from core.command import run as run_command
from data_shards.shards.manifest import MANIFEST, Field, Manifest, read_manifest
from launch import align, evaluate, export, robustness
from launch.config import ConfigError
from launch.monitor.preemption import Stop
from launch.run_directory import find_run, record_run
from launch.session import prepare
from launch.tasks.build import build_task
from launch.tasks.data_record import NAME, read_record, refuse_other_data, write_record

Change = Callable[[Manifest], Manifest]


def fields(**changes: Field | None) -> Change:
    """The manifest with other fields; None takes one away."""

    def change(manifest: Manifest) -> Manifest:
        found = {**manifest.fields, **changes}
        return replace(manifest, fields={name: f for name, f in found.items() if f is not None})

    return change


def labels(**changes: Any) -> Change:
    return lambda manifest: replace(manifest, labels=replace(manifest.labels, **changes))


def tokenizer(**changes: Any) -> Change:
    return lambda manifest: replace(manifest, tokenizer={**(manifest.tokenizer or {}), **changes})


def task_of(manifest: Manifest) -> Any:
    """As much of a task as its record needs."""
    widths = dict.fromkeys(manifest.fields, 1)
    return SimpleNamespace(manifest=manifest, data=SimpleNamespace(features=widths))


@pytest.fixture
def manifest(small_shards: Path) -> Manifest:
    return read_manifest(small_shards)


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (fields(audio=Field("float32", (None, 74))), "* audio 5 features 74 features"),
        (fields(vision=Field("float32", (None, 35))), "* vision 20 features 35 features"),
        (fields(text=Field("float32", (None, 300))), "* text token ids 300 features"),
        (fields(vision=None), "* vision 20 features none"),
        (fields(depth=Field("float32", (None, 3))), "* depth none 3 features"),
        (tokenizer(vocab_size=30522), "* vocabulary 53 tokens, 30522 tokens,"),
        (tokenizer(sha256="ab" * 32), "* vocabulary 53 tokens, 53 tokens, SHA-256 abababab"),
        (lambda manifest: replace(manifest, tokenizer=None), "* vocabulary 53 tokens, none"),
        (labels(low=-1.0, high=1.0), "* labels scores from -3 to 3 scores from -1 to 1"),
        (labels(low=0.0), "* labels scores from -3 to 3 scores from 0 to 3"),
        (
            labels(kind="classes", names=("no", "yes")),
            "* labels scores from -3 to 3 classes no, yes",
        ),
        (lambda manifest: replace(manifest, task="alignment"), "* task sentiment alignment"),
    ],
)
def test_data_of_another_kind_are_refused_with_both_columns(
    manifest: Manifest, tmp_path: Path, change: Change, row: str
):
    write_record(tmp_path, task_of(manifest))
    with pytest.raises(ConfigError, match="was trained on data of another kind") as refusal:
        refuse_other_data(tmp_path, task_of(change(manifest)), "other/shards")
    table = [" ".join(line.split()) for line in refusal.value.table]
    assert table[0] == f"{tmp_path} was trained on other/shards holds"
    marked = [line for line in table if line.startswith("*")]
    for words in row.split(", "):
        assert any(words in line for line in marked), marked


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest,
        lambda manifest: replace(manifest, name="another set"),
        lambda manifest: replace(manifest, splits={"test": manifest.splits["test"]}),
        lambda manifest: replace(manifest, moments={}),
        tokenizer(name="the same, moved"),
        labels(resolution=None),
        fields(label_audio=Field("float32", ())),
    ],
)
def test_data_of_the_same_kind_are_taken(manifest: Manifest, tmp_path: Path, change: Change):
    write_record(tmp_path, task_of(manifest))
    refuse_other_data(tmp_path, task_of(change(manifest)), "other/shards")


def test_a_model_of_graphs_wants_the_very_same_ones(graph_shards: Path, tmp_path: Path):
    task = build_task(small_run("mclea", graph_shards))
    write_record(tmp_path, task)
    refuse_other_data(tmp_path, task, "here")
    shard, *others = task.manifest.splits["entities"]
    splits = {**task.manifest.splits, "entities": (replace(shard, sha256="0" * 64), *others)}
    task.manifest = replace(task.manifest, splits=splits)
    with pytest.raises(ConfigError, match=r"\(shards differ\)"):
        refuse_other_data(tmp_path, task, "other graphs")


def test_an_earlier_run_has_no_record_and_is_compared_by_its_shapes(
    manifest: Manifest, tmp_path: Path
):
    assert read_record(tmp_path) is None
    refuse_other_data(tmp_path, task_of(fields(vision=None)(manifest)), "other/shards")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "concord-data", "version": 9}', "a FIFO", '"a"']
    + [
        json.dumps({"format": "concord-data", "version": 1, "task": 3}),
        json.dumps({"format": "concord-data", "version": 1, "task": "sentiment"}),
    ],
)
def test_an_odd_record_is_refused_by_name(manifest: Manifest, tmp_path: Path, content: str):
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ConfigError, match=NAME):
        refuse_other_data(tmp_path, task_of(manifest), "shards")


@pytest.fixture
def started(small_shards: Path, tmp_path: Path) -> Path:
    """The directory of a run that has its records and nothing else: what is computed would fail."""
    run, run_dir = find_run(replace(small_run("hscl", small_shards), run_dir=str(tmp_path / "run")))
    run_dir.mkdir()
    record_run(run, run_dir)
    write_record(run_dir, build_task(run))
    return run_dir


@pytest.fixture
def other_shards(small_shards: Path, tmp_path: Path) -> Path:
    """The same shards with labels that are said to be of another range."""
    folder = tmp_path / "other"
    shutil.copytree(small_shards, folder)
    changed = labels(low=-1.0, high=1.0, resolution=None)(read_manifest(folder))
    (folder / MANIFEST).write_text(changed.to_json())
    return folder


CPU = torch.device("cpu")
DOORS: dict[str, Callable[[Path, str, Path], Any]] = {
    "evaluate": lambda run, data, out: evaluate.evaluate(run, [data], "test"),
    "export": lambda run, data, out: export.export(run, out, [data]),
    "robustness B": lambda run, data, out: robustness.one_run(run, [0.0, 0.5], [data], CPU),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_before_anything_is_computed(
    door: str, started: Path, other_shards: Path, tmp_path: Path
):
    with pytest.raises(ConfigError, match=r"another kind .* \(labels differ\)"):
        DOORS[door](started, f"data={other_shards}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_comparison_stands_below_the_line(
    started: Path, other_shards: Path, capsys: pytest.CaptureFixture[str]
):
    def work() -> None:
        evaluate.evaluate(started, [f"data={other_shards}"], "test")

    assert run_command(work) == 2
    line, *table = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {started} was trained on data of another kind")
    assert [row.split()[:2] for row in table[1:]] == [
        ["task", "sentiment"],
        ["audio", "5"],
        ["text", "token"],
        ["vision", "20"],
        ["vocabulary", "53"],
        ["*", "labels"],
    ]


def test_a_run_does_not_go_on_with_other_data_in_the_same_place(
    started: Path, other_shards: Path, small_shards: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Stop, "listen", lambda self: self)
    config = json.loads((started / "config.json").read_text())
    config["run"]["data"] = str(other_shards)  # as if these had been put in the place of those
    (started / "config.json").write_text(json.dumps(config))
    run = replace(small_run("hscl", small_shards), run_dir=str(started), data=str(other_shards))
    with pytest.raises(ConfigError, match=r"\(labels differ\)"), prepare(run):
        pass


def test_aligning_other_graphs_is_refused(graph_shards: Path, tmp_path: Path):
    run, run_dir = find_run(
        replace(small_run("mclea", graph_shards), run_dir=str(tmp_path / "run"))
    )
    run_dir.mkdir()
    record_run(run, run_dir)
    task = build_task(run)
    shard, *others = task.manifest.splits["graph"]
    splits = {**task.manifest.splits, "graph": (replace(shard, sha256="0" * 64), *others)}
    task.manifest = replace(task.manifest, splits=splits)
    write_record(run_dir, task)
    with pytest.raises(ConfigError, match=r"another kind .* \(shards differ\)"):
        align.align(run_dir, [], "mutual", "open", 3)
