"""Modalities under other names, and samples that have none at all: converted, counted, left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_tables import write_csv

from data_shards.convert import main as convert_main
from data_shards.inspect import main as inspect_main
from data_shards.shards.manifest import DataError, Manifest, read_manifest
from data_shards.sources.rename import parse_renaming
from data_shards.stream import Stream

SAMPLES = 20
EMPTY = {2, 3, 7, 8, 13}  # samples without any modality; the fifth split member is for validation


def table(folder: Path, audio: str = "audio") -> Path:
    np.save(folder / "frames.npy", np.arange(SAMPLES * 6, dtype=np.float32).reshape(SAMPLES, 3, 2))
    rows: list[dict[str, Any]] = []
    for number in range(SAMPLES):
        cell = "" if number in EMPTY else f"frames.npy[{number}]"
        split = "valid" if number % 5 == 3 else "train"
        rows.append(
            {"id": f"s{number}", "split": split, "label": number / 10, audio: cell, "face": cell}
            | {"label_face": number / 10}
        )
    return write_csv(rows, folder / "table.csv")


def shards(folder: Path, *options: str) -> Path:
    out = folder / "shards"
    words = [str(table(folder)), "--out", str(out), "--labels", "0:3", "--shard-size", "4"]
    assert convert_main([*words, *options]) == 0
    return out


def refused(folder: Path, *options: str) -> bool:
    words = [str(table(folder)), "--out", str(folder / "refused"), "--labels", "0:3", *options]
    return convert_main(words) == 2


def indices(stream: Stream, epoch: int = 0) -> list[int]:
    found: list[int] = []
    for micro_batches in stream.epoch(epoch):
        for part in micro_batches:
            found += part.index[part.weight > 0].tolist()
    return found


def test_a_modality_and_its_labels_get_their_new_name(tmp_path: Path) -> None:
    manifest = read_manifest(shards(tmp_path, "--rename", "face=vision"))
    assert list(manifest.fields) == ["audio", "vision", "label", "label_vision"]
    assert manifest.moments.keys() == manifest.max_length.keys() == {"audio", "vision"}
    assert manifest.source["options"]["rename"] == {"face": "vision"}
    (batch,) = next(iter(Stream(tmp_path / "shards", "valid", global_batch=4).epoch(0)))
    assert batch.arrays["label_vision"].tolist() == batch.arrays["label"].tolist()


def test_two_modalities_change_names(tmp_path: Path) -> None:
    manifest = read_manifest(shards(tmp_path, "--rename", "face=audio", "--rename", "audio=face"))
    assert list(manifest.fields)[:2] == ["face", "audio"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fase=vision"], "no modality 'fase', only audio, face; did you mean 'face'?"),
        (["label=vision"], "no modality 'label', only audio, face"),
        (["face=audio"], "audio and face would both be called 'audio'"),
        (["face=label_x"], "'label_x' cannot be the name of a modality"),
        (["face=a.b"], "'a.b' cannot be the name of a modality"),
        (["face"], "--rename 'face': expected OLD=NEW"),
        (["face=a", "face=b"], "'face' is renamed to 'a' already"),
    ],
)
def test_a_renaming_that_cannot_be_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part for word in words for part in ("--rename", word)]
    assert refused(tmp_path, *options)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_renaming_is_read_in_order() -> None:
    assert parse_renaming(["a=b", "c=d"]) == {"a": "b", "c": "d"}
    assert parse_renaming([]) == {}


def test_samples_without_any_modality_are_counted_and_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shards(tmp_path)
    said = capsys.readouterr().out
    counted = "5 of 20 samples have none of the modalities (2 in train, 3 in valid)"
    assert f"WARNING: {counted}" in said
    assert "loading.empty=leave_out" in said
    assert read_manifest(folder).empty() == {"train": 2, "valid": 3}
    assert inspect_main([str(folder)]) == 0
    assert f"WARNING: {counted}" in capsys.readouterr().out


def test_they_are_left_out_of_every_batch_when_asked(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    numbers = [number for number in range(SAMPLES) if number % 5 != 3]
    wanted = [place for place, number in enumerate(numbers) if number not in EMPTY]
    settings: dict[str, Any] = {"global_batch": 4, "seed": 3, "bucket": True}
    stream = Stream(folder, "train", keep_empty=False, **settings)
    assert len(stream) == len(numbers)
    assert stream.steps() == -(-len(wanted) // 4)
    assert sorted(indices(stream)) == wanted
    assert sorted(indices(Stream(folder, "train", **settings))) == list(range(len(numbers)))
    ranks = [
        Stream(folder, "train", keep_empty=False, rank=rank, ranks=2, **settings) for rank in (0, 1)
    ]
    assert sorted(indices(ranks[0], 1) + indices(ranks[1], 1)) == wanted
    in_order = Stream(folder, "train", keep_empty=False, global_batch=5, shuffle=False)
    assert indices(in_order) == wanted
    assert in_order.ids([wanted[0]]) == ["s0"]


def test_a_position_does_not_pass_from_one_way_to_the_other(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    without = Stream(folder, "train", global_batch=4, keep_empty=False)
    every = Stream(folder, "train", global_batch=4)
    with pytest.raises(DataError, match="another order of samples: left_out was 2 and is None"):
        every.load_state_dict(without.state_dict())
    without.load_state_dict(without.copy().state_dict())


def test_a_split_without_any_of_what_is_read_is_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    with pytest.raises(DataError, match="no sample of .* has any of its modalities: none"):
        Stream(folder, "valid", global_batch=2, fields=("label",), keep_empty=False)


@pytest.mark.parametrize("empty", [{"train": "2"}, ["train"], {"tset": 1}])
def test_counts_that_are_none_are_refused(empty: Any, tmp_path: Path) -> None:
    manifest = read_manifest(shards(tmp_path))
    manifest.extras["samples without any modality"] = empty
    with pytest.raises(DataError, match="samples without any modality"):
        Manifest.from_json(manifest.to_json(), "manifest.json")
