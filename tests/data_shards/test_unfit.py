"""What would train wrongly is seen by inspect, by verify, and by training before its first step."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tars import clips, write_table, write_tars

from core.batch import Utterances
from data_shards.convert import convert
from data_shards.convert import main as convert_command
from data_shards.index import main as index
from data_shards.indexing.folder_indexer import Stated, index_folder
from data_shards.inspect import main as inspect
from data_shards.shards.manifest import DataError, Field, Labels, Manifest, read_manifest
from data_shards.shards.sentiment_schema import check_manifest
from data_shards.sources.raw_dataset import Options
from data_shards.verify import main as verify
from launch.config import Run, load_recipe, override
from launch.session import prepare
from launch.tasks.build import build_task

# webdataset leaves its file to the collector
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def rewrite(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    (folder / "manifest.json").write_text(change(read_manifest(folder)).to_json())


def run_of(folder: Path, *words: str) -> Run:
    return override(load_recipe("baseline/demo"), [f"data={folder}", "batch_size=8", *words])


def kinds(manifest: Manifest, **changes: Field) -> Manifest:
    return replace(manifest, fields=manifest.fields | changes)


Change = Callable[[Manifest], Manifest]
MEANINGS: list[tuple[Change, str]] = [
    (lambda it: replace(it, moments={}), "the mean of 'audio' over train frames is missing"),
    (lambda it: replace(it, tokenizer=None), "the vocabulary of its token ids is not known"),
    (lambda it: replace(it, tokenizer={"vocab_size": 0}), "the vocabulary of its token ids is"),
    (lambda it: replace(it, labels=Labels(kind="classes")), "labels are said to be classes"),
]
FIELDS: list[tuple[Change, str]] = [
    (lambda it: kinds(it, label=Field("float32", (1,))), r"'label' is float32 of shape \(1,\)"),
    (lambda it: kinds(it, label=Field("bool", ())), "'label' is bool"),
    (lambda it: kinds(it, **{"class": Field("int64", ())}), "both 'label' and 'class'"),
    (lambda it: kinds(it, label_audio=Field("int64", ())), "'label_audio' is int64"),
    (lambda it: kinds(it, audio=Field("int16", (None, 5))), "'audio' is int16"),
    (lambda it: kinds(it, audio=Field("float32", (5,))), r"'audio' is float32 of shape \(5,\)"),
    (lambda it: kinds(it, text=Field("int32", (None, 3))), "'text' is int32"),
    (lambda it: kinds(it, jpg=Field("uint8", (None,))), "'jpg' is uint8"),
]


@pytest.mark.parametrize(
    ("change", "message"), MEANINGS + FIELDS, ids=[case[1] for case in MEANINGS + FIELDS]
)
def test_a_manifest_that_cannot_be_learnt_from_is_refused(
    tmp_path: Path, change: Change, message: str
) -> None:
    manifest = index_folder(write_tars(clips(), tmp_path))
    check_manifest(manifest, "data")
    with pytest.raises(DataError, match=message):
        check_manifest(change(manifest), "data")


@pytest.mark.parametrize(("change", "message"), MEANINGS, ids=[case[1] for case in MEANINGS])
def test_such_a_manifest_is_seen_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    """As an earlier version made it of foreign tars."""
    index_folder(write_tars(clips(), tmp_path))
    rewrite(tmp_path, change)
    with pytest.raises(DataError, match=message):
        build_task(run_of(tmp_path))
    assert verify([str(tmp_path), "--deep"]) == 1
    assert message in capsys.readouterr().err
    assert inspect([str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert f"UNFIT: {tmp_path}/manifest.json" in said.out
    assert "would learn wrongly from" in said.err


SAMPLES: list[tuple[str, Any, str]] = [
    ("label", np.float32("nan"), "label: nan is no finite number"),
    ("label", np.float32(5.5), "label: 5.5 is outside the label range 1 to 5"),
    ("text", np.array([1, 70]), "text: token 1 is 70, outside the vocabulary of 60 tokens"),
    ("audio", np.full((2, 5), np.float32("inf")), r"audio: inf at \(0, 0\), one of 10"),
]


@pytest.mark.parametrize(("field", "value", "message"), SAMPLES, ids=[case[2] for case in SAMPLES])
def test_a_sample_that_would_be_learnt_wrongly_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: Any, message: str
) -> None:
    """As tars may be that were indexed without a look at their numbers."""
    described = index_folder(write_tars(clips(), tmp_path / "sound"))
    made = clips()
    made["valid"][2][field] = value
    folder = write_tars(made, tmp_path / "spoilt")
    index_folder(folder, Stated(task="arrays"))
    rewrite(folder, lambda manifest: replace(described, splits=manifest.splits))
    named = rf"spoilt/valid-000000\.tar, sample 'valid_0002': {message}"
    assert verify([str(folder), "--deep"]) == 1
    assert re.search(named, capsys.readouterr().err)
    assert inspect([str(folder)]) == 2
    assert re.search(rf"UNFIT: .*{named}", capsys.readouterr().out)


@pytest.mark.parametrize("lacking", ["train", "valid"])
def test_tars_without_a_needed_split_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    made = clips()
    del made[lacking]
    assert index([str(write_tars(made, tmp_path))]) == 2
    assert f"no tar is of the split {lacking}" in capsys.readouterr().err


def test_tars_are_told_apart_by_what_is_said(tmp_path: Path) -> None:
    made = clips()
    names = {"train": "part-0", "valid": "part-1", "test": "held-out"}
    folder = write_tars(made, tmp_path, names)
    assert index([str(folder), "--split", "part-0=train", "--split", "part-1=dev"]) == 2
    rules = ["part-0=train", "part-1=dev", "held*=test"]
    assert index([str(folder), *[word for rule in rules for word in ("--split", rule)]]) == 0
    assert list(read_manifest(folder).splits) == ["train", "valid", "test"]


def test_options_for_a_folder_that_has_a_manifest_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tars(clips(), tmp_path)
    assert index([str(folder)]) == 0
    assert index([str(folder)]) == 0
    for words in (["--labels", "1:5"], ["--split", "train"], ["--leave-out", "audio"]):
        capsys.readouterr()
        assert index([str(folder), *words]) == 2
        assert f"so {words[0]} has no effect" in capsys.readouterr().err


def test_keys_must_be_unique_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tars(clips(), tmp_path)
    (folder / "train-000000.tar").rename(folder / "train-000001.tar")
    write_tars(clips(), tmp_path)
    assert index([str(folder)]) == 2
    assert "sample 'train_0000': this key is in train-000000.tar already" in capsys.readouterr().err


def test_a_record_that_says_a_thing_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tars(clips(), tmp_path, json=b'{"video": "a", "video": "b"}')
    assert index([str(folder)]) == 2
    said = capsys.readouterr().err
    assert "train-000000.tar, sample 'train_0000': not JSON: 'video' stands there twice" in said


def test_tars_in_folders_below_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tars(clips(), tmp_path / "train")
    assert index([str(tmp_path)]) == 2
    assert "holds no .tar files; those in folders below are not read" in capsys.readouterr().err


@pytest.mark.parametrize("lacking", ["train", "valid"])
def test_training_refuses_a_missing_split_before_its_first_step(
    tmp_path: Path, lacking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the data came by a table."""
    made = clips()
    del made[lacking]
    table = write_table(made, tmp_path / "raw")
    data = tmp_path / "data"
    convert(table, data, Options(labels=Labels(low=1, high=5)))
    run = run_of(data, f"run_dir={tmp_path / 'run'}")
    with pytest.raises(DataError, match=f"has no split '{lacking}'"), prepare(run, quiet=True):
        pass
    assert not (tmp_path / "run").exists()
    there = ", ".join(made)
    warning = (
        f"WARNING: no {lacking} split, and training needs it; there are samples in {there} alone: "
        "give some rows or tars that split"
    )
    inspect([str(data)])
    assert warning in capsys.readouterr().out
    words = ["--out", str(tmp_path / "again"), "--labels", "1:5"]
    assert convert_command([str(table), *words]) == 0  # what is there may be scored
    assert warning in capsys.readouterr().out


@pytest.mark.parametrize("split", ["valid", "test"])
def test_training_looks_at_the_tars_of_every_split_before_its_first_step(
    tmp_path: Path, split: str
) -> None:
    folder = write_tars(clips(), tmp_path)
    index_folder(folder)
    (folder / f"{split}-000000.tar").unlink()
    run = run_of(folder, f"run_dir={tmp_path / 'run'}")
    with pytest.raises(DataError, match=rf"{split}-000000\.tar"), prepare(run, quiet=True):
        pass
    assert not (tmp_path / "run").exists()


def test_labels_of_any_modality_are_read(tmp_path: Path) -> None:
    made = clips()
    for samples in made.values():
        for arrays in samples:
            arrays["label_audio"] = np.float32(2)
            arrays["label_eeg"] = np.float32(3)
    index_folder(write_tars(made, tmp_path))
    (batch,) = next(iter(build_task(run_of(tmp_path)).batches(0)))
    assert isinstance(batch, Utterances)
    views = {name: set(label.tolist()) for name, label in batch.unimodal_labels.items()}
    assert views == {"audio": {2.0}, "eeg": {3.0}}
    assert set(batch.frames) == {"text", "audio", "vision"}


def test_a_stated_step_is_the_one_that_labels_fit(tmp_path: Path) -> None:
    """At either door."""
    made = clips()  # in steps of 1/2
    table = write_table(made, tmp_path / "raw")
    folder = write_tars(made, tmp_path / "tars")
    for step, fits in ((1.0, 0.5), (0.5, 0.5), (0.3, 0.1), (0.37, None)):
        labels = Labels(low=1, high=5, resolution=step)
        one = convert(table, tmp_path / "data", Options(labels=labels), force=True).labels
        other = index_folder(folder, Stated(labels=labels)).labels
        assert one == other
        assert one.resolution == (fits if fits is None else pytest.approx(fits)), step
