"""What the table layout refuses, by row."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from raw_tables import (
    AUDIO,
    SCORES,
    Rows,
    write_arrays,
    write_csv,
)

from data_shards.convert import convert
from data_shards.shards.manifest import DataError
from data_shards.sources.raw_dataset import Options


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return write_arrays(tmp_path)


def _cell(i: int, column: str, value: Any) -> Callable[[Rows], None]:
    return lambda rows: rows[i].update({column: value})


def _drop(column: str) -> Callable[[Rows], None]:
    return lambda rows: [row.pop(column) for row in rows] and None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cell(1, "id", "a"), r"t\.csv, line 3 \('a'\): this id is already in the table"),
        (_cell(1, "id", ""), r"t\.csv, line 3: no 'id'"),
        (_drop("split"), "line 2: no 'split'"),
        (_drop("label"), r"\('a'\): needs either a label or a class"),
        (_cell(0, "split", "holdout"), r"\('a'\): split 'holdout' is none of train"),
        (_cell(0, "label", "good"), r"\('a'\): label: 'good' is no number"),
        (_cell(0, "label", "3.5"), r"\('a'\): label: 3.5 is outside the label range -3 to 3"),
        (_cell(0, "label", "nan"), r"\('a'\): label: nan is no finite number"),
        (_cell(1, "audio", "../secret.npy"), "'../secret.npy' lies outside the table's folder"),
        (_cell(1, "audio", "link.npy"), "'link.npy' lies outside the table's folder"),
        (_cell(1, "audio", "/etc/secret.npy"), "lies outside the table's folder"),
        (_cell(1, "audio", "gone.npy"), "there is no file 'gone.npy'"),
        (_cell(1, "audio", "some.npz"), "an .npz needs a #KEY"),
        (_cell(1, "audio", "vision.npy#x"), "an .npy has no keys"),
        (_cell(1, "audio", "some.npz#other"), "some.npz has no key 'other'"),
        (_cell(1, "audio", "some.npz#stack[4]"), "points past the end of an array of shape"),
        (_cell(1, "audio", "deep/frames.npy[20:30]"), "points past the end"),
        (_cell(1, "audio", "frames"), "neither FILE.npy nor FILE.npz#KEY"),
        (
            _cell(1, "audio", "vision.npy"),
            r"\('b'\): audio: has 2 features, and samples before it have 3",
        ),
        (_cell(1, "audio", "some.npz#stack"), "frames are"),
        (
            _cell(0, "audio", "objects.npy"),
            r"\('a'\): audio: .*objects.npy holds Python objects, which are never read; save numb",
        ),
        (_cell(0, "audio", "cut.npy"), r"cut.npy: a damaged header"),
        (_cell(0, "audio", "short.npy"), r"short.npy is cut off: its header announces 64 bytes"),
        (_cell(0, "audio", "cut.npz#first"), "cut.npz is damaged or no .npz archive"),
        (_cell(0, "audio", "words.npy"), "no array of numbers"),
        (_cell(0, "audio", "zip.npy"), r"zip.npy is an .npz archive; call it so"),
        (_cell(0, "audio", "array.npz#first"), "array.npz is damaged or no .npz archive"),
        (_cell(0, "audio", "objects.npz#first"), "objects.npz#first holds Python objects"),
        (_cell(0, "audio", "records.npy"), r"records.npy holds \[\('a', '<i4'\)\]; only numbers"),
        (_cell(0, "audio", "loop.npy"), "'loop.npy'"),
        (_cell(0, "audio", "deep.npy/x.npy"), "no file 'deep.npy/x.npy'"),
        (_cell(0, "audio", "pipe.npy"), r"\('a'\): audio: .*pipe.npy is a named pipe"),
        (_cell(0, "audio", "a" * 300 + ".npy"), r"\('a'\): audio: cannot open 'aaa"),
        (
            _cell(0, "audio", "a\0b.npy"),
            r"\('a'\): audio: 'a\\x00b.npy' cannot be the name of a file",
        ),
        (_cell(0, "audio", "wide.npy"), r"has shape \(5, 0\); frames are"),
        (_cell(0, "audio", "vast.npy"), "frames have fewer than 1048576 features"),
        (_cell(0, "label", "1e999"), "label: inf is no finite number"),
        (_cell(0, "label", "9" * 400), "label: inf is no finite number"),
        (
            lambda rows: [row.update({"label_a b": 1}) for row in rows] and None,
            r"\('a'\): 'label_a b' cannot be the name of a label",
        ),
        (
            lambda rows: [row.update({"bad name": row.pop("audio")}) for row in rows] and None,
            "cannot be the name",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_by_row(
    rows: Rows, tmp_path: Path, change: Callable[[Rows], None], message: str
) -> None:
    np.save(tmp_path.parent / "secret.npy", AUDIO[0])
    (tmp_path / "link.npy").symlink_to(tmp_path.parent / "secret.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "vision.npy").read_bytes()[:100])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "some.npz").read_bytes()[:-30])
    (tmp_path / "zip.npy").write_bytes((tmp_path / "some.npz").read_bytes())
    (tmp_path / "array.npz").write_bytes((tmp_path / "vision.npy").read_bytes())
    (tmp_path / "short.npy").write_bytes((tmp_path / "vision.npy").read_bytes()[:-8])
    np.save(tmp_path / "records.npy", np.zeros(2, [("a", "<i4")]))
    (tmp_path / "loop.npy").symlink_to("loop.npy")
    (tmp_path / "deep.npy").touch()
    os.mkfifo(tmp_path / "pipe.npy")
    np.save(tmp_path / "wide.npy", np.zeros((5, 0)))
    np.save(tmp_path / "vast.npy", np.zeros((0, 2**20)))
    np.savez(tmp_path / "objects.npz", first=np.array([{}], dtype=object))
    change(rows)
    with pytest.raises(DataError, match=message):
        convert(write_csv(rows, tmp_path / "t.csv"), tmp_path / "out", SCORES)


@pytest.mark.parametrize(
    "tokens",
    ["[1.5]", "[-1]", "1 2", "[[1]]", '["a"]', "[16777216]", "[4294967296]", "[1, true]", "5"]
    + ["{}", '{"a": 1}', f"[{10**400}]", f"[{'9' * 5000}]", "[1e999]", "[" * 5000],
)
def test_impossible_token_ids_are_refused(rows: Rows, tmp_path: Path, tokens: str) -> None:
    for row in rows:
        row["tokens"] = tokens
    with pytest.raises(DataError, match="token ids"):
        convert(write_csv(rows, tmp_path / "t.csv"), tmp_path / "out", SCORES)


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("t.csv", b"id,split,label\na,train\n", "not as many cells"),
        ("t.csv", b"id,split,label\n\xff,train,1\n", "no CSV in UTF-8"),
        ("t.csv", b"", "holds no rows"),
        ("t.csv", b'id,split,label\n"a,train,1\n', "no CSV"),
        ("t.jsonl", b'{"id": 1}\n{"id"\n', "line 1"),
        ("t.jsonl", b"[1]\n", "a list, not an object"),
        ("t.jsonl", b"{\n", "line 1: not JSON"),
        ("t.parquet", b"PAR1", "damaged or no Parquet"),
        ("t.csv", b"id,split,label,label\na,train,1,2\n", "line 1: two columns are called 'label'"),
        ("t.csv", b"id,split,,label\na,train,,2\n", "line 1: column 3 has no name"),
        ("t.jsonl", b'{"id": 1, "label": 1, "label": 2}\n', "line 1: not JSON: 'label' stands"),
        ("t.jsonl", b'{"id": 1, "n": {"a": 1, "a": 2}}\n', "line 1: not JSON: 'a' stands there"),
        ("t.jsonl", b'\n{"id": 1, "note": NaN}\n', "line 2: not JSON: NaN is not a number"),
        ("t.jsonl", b'{"id": 1, "note": "\xff"}\n', "line 1: not JSON"),
    ],
)
def test_damaged_tables_are_refused_by_name(
    tmp_path: Path, name: str, body: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=message) as caught:
        convert(tmp_path / name, tmp_path / "out", SCORES)
    assert name in str(caught.value)


ROW = {"id": "a", "split": "train", "label": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": ["train"]}, r"split: \['train'\], where a word or number should be"),
        ({"split": {"a": 1}}, "split: {'a': 1}, where a word"),
        ({"split": 1}, "split '1' is none of"),
        ({"id": [1]}, r"id: \[1\], where a word"),
        ({"text": ["a"]}, r"text: \['a'\], where a word"),
        ({"label": None, "class": [1]}, r"class: \[1\], where a word"),
        ({"label": "good"}, "label: 'good' is no number"),
        ({"label": [1]}, r"label: \[1\] is no number"),
        ({"label": True}, "label: True is no number"),
        ({"label": 10**400}, "label: 1000.* is larger than any float"),
        ({"label_audio": "word"}, "label_audio: 'word' is no number"),
        ({"label_audio": 10**400}, "label_audio: 1000.* is larger than any float"),
        ({"tokens": 5}, "token ids must be a list of whole numbers from 0 to 16777215, got 5"),
        ({"note": 1e999}, "note: inf is no value; leave the cell empty"),
        ({"note": {"a": [1e999]}}, "note: inf is no value"),
        ({"note": "\ud800"}, "note: .* is no valid Unicode"),
        ({"id": "\ud800"}, "id: .* is no valid Unicode"),
        ({"note": json.loads("[" * 40 + "]" * 40)}, "note: lists in lists deeper than 32"),
    ],
)
def test_a_cell_of_another_kind_is_refused_with_line_and_value(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    table = tmp_path / "t.jsonl"
    infinite = json.dumps(ROW) + "\n" + json.dumps(ROW | {"id": "b"} | changes) + "\n"
    table.write_text(infinite.replace("Infinity", "1e999"))
    with pytest.raises(DataError, match=rf"t\.jsonl, line 2.*{message}"):
        convert(table, tmp_path / "out", SCORES)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("note", [1.0, float("nan")], "row 2: note: nan is no value"),
        ("note", [b"\xff", None], "row 1: note: a bytes, which JSON cannot hold"),
        ("note", [datetime.date(2020, 1, 1), None], "row 1: note: a date, which JSON cannot hold"),
        ("label", [1.0, float("nan")], r"row 2 \('1'\): label: nan is no finite number"),
        ("split", [["train"], ["train"]], r"row 1: split: \['train'\], where a word"),
    ],
)
def test_a_parquet_cell_that_cannot_be_kept_is_refused_with_row_and_value(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    table = {"id": ["0", "1"], "split": ["train"] * 2, "label": [1.0, 2.0]} | {column: values}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        convert(tmp_path / "t.parquet", tmp_path / "out", SCORES)


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [pyarrow.array(["a"]), pyarrow.array([1.0]), pyarrow.array([2.0])]
    table = pyarrow.Table.from_arrays(columns, ["id", "label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="t.parquet: two columns are called 'label'"):
        convert(tmp_path / "t.parquet", tmp_path / "out", SCORES)


def test_text_features_need_cells_that_point_to_arrays(rows: Rows, tmp_path: Path) -> None:
    for row in rows:
        row["text_features"] = "a word"
    table = write_csv(rows, tmp_path / "t.csv")
    options = Options(labels=SCORES.labels, text="features")
    with pytest.raises(DataError, match=r"t.csv: no cell of 'text_features' points to an array"):
        convert(table, tmp_path / "out", options)
    rows[0]["text_features"] = "vision.npy[0]"
    table = write_csv(rows, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"line 3 \('b'\): text_features: 'a word' is neither"):
        convert(table, tmp_path / "out", options)


def test_the_label_range_must_be_stated(rows: Rows, tmp_path: Path) -> None:
    table = write_csv(rows, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"labels are from -3 to 3\); add --labels"):
        convert(table, tmp_path / "out")
    assert convert(table, tmp_path / "out", Options(dataset="mosi")).labels.low == -3
