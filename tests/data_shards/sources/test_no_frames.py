"""A modality that a sample lacks, however its file says so: alike in pickles and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_pickles import Content, read_back, save
from raw_tables import SCORES, Rows, write_arrays, write_csv, write_json

from data_shards.convert import convert
from data_shards.shards.manifest import DataError
from data_shards.sources.raw_dataset import as_frames

NAMES = {write_csv: "t.csv", write_json: "t.jsonl"}
NOTHING: list[Any] = [
    None,
    [],
    (),
    np.zeros(0),
    np.zeros((0, 5)),
    np.zeros((0, 0), np.float32),
    np.empty(0, dtype=object),
]


@pytest.mark.parametrize("value", NOTHING, ids=repr)
def test_no_frames_are_read_as_none(value: Any):
    assert as_frames(value, "here").shape[0] == 0


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (np.zeros((5, 0)), r"\(5, 0\)"),
        (np.float32(1), r"\(\)"),
        (np.zeros((0, 2, 3)), r"\(0, 2, 3"),
    ],
)
def test_what_is_no_sequence_is_shown_with_its_own_shape(value: Any, shape: str):
    with pytest.raises(DataError, match=rf"here: has shape {shape}"):
        as_frames(value, "here")


@pytest.mark.parametrize("value", NOTHING, ids=repr)
@pytest.mark.parametrize("row", [0, 3])
def test_a_clip_of_a_pickle_lacks_the_modality(
    content: Content, tmp_path: Path, value: Any, row: int
):
    for split in ("train", "valid", "test"):
        content[split]["audio"] = list(content[split]["audio"])
    content["train"]["audio"][row] = value
    manifest = convert(save(content, tmp_path), tmp_path / "out")
    assert manifest.fields["audio"].shape == (None, 5)
    clips = read_back(tmp_path / "out")
    lacking = [name for name, clip in clips.items() if "audio" not in clip]
    assert lacking == [content["train"]["id"][row]]


@pytest.mark.parametrize(
    "value", ["[]", "none.npy", "no_rows.npy", "nothing.npz#x", "vision.npy[1:1]"]
)
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("write", [write_csv, write_json])
def test_a_row_of_a_table_lacks_the_modality(tmp_path: Path, value: str, row: int, write: Any):
    rows: Rows = write_arrays(tmp_path)
    np.save(tmp_path / "none.npy", np.zeros(0))
    np.save(tmp_path / "no_rows.npy", np.zeros((0, 2)))
    np.savez(tmp_path / "nothing.npz", x=np.zeros((0, 2)))
    rows[row]["vision"] = value
    manifest = convert(write(rows, tmp_path / NAMES[write]), tmp_path / "out", SCORES)
    assert manifest.fields["vision"].shape == (None, 2)
    samples = read_back(tmp_path / "out")
    assert "vision" not in samples[rows[row]["id"]]
    assert "vision" in samples["7"]


def test_an_empty_list_in_json_is_no_frames(tmp_path: Path):
    rows = write_arrays(tmp_path)
    rows[2]["audio"] = []
    convert(write_json(rows, tmp_path / "t.jsonl"), tmp_path / "out", SCORES)
    samples = read_back(tmp_path / "out")
    assert {name for name in samples if "audio" not in samples[name]} == {"7", rows[3]["id"]}


def test_a_modality_that_nobody_has_is_none(content: Content, tmp_path: Path):
    for split in ("train", "valid", "test"):
        content[split]["vision"] = [None] * len(content[split]["id"])
    content["train"]["regression_labels"][0] = 0.2
    manifest = convert(save(content, tmp_path, "mosi.pkl"), tmp_path / "out")
    assert "vision" not in manifest.fields
