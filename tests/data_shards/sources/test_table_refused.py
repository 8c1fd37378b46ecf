"""What the table layout refuses, by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
            r"\('a'\): audio: cannot read objects.npy: .*Python objects",
        ),
        (_cell(0, "audio", "cut.npy"), "cannot read cut.npy"),
        (_cell(0, "audio", "cut.npz#first"), "cannot read cut.npz"),
        (_cell(0, "audio", "words.npy"), "no array of numbers"),
        (_cell(0, "audio", "zip.npy"), "cannot read zip.npy"),
        (_cell(0, "audio", "array.npz#first"), "cannot read array.npz"),
        (
            _cell(0, "audio", "objects.npz#first"),
            "cannot read objects.npz: Object arrays cannot be loaded",
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
    np.savez(tmp_path / "objects.npz", first=np.array([{}], dtype=object))
    change(rows)
    with pytest.raises(DataError, match=message):
        convert(write_csv(rows, tmp_path / "t.csv"), tmp_path / "out", SCORES)


@pytest.mark.parametrize("tokens", ["[1.5]", "[-1]", "1 2", "[[1]]", '["a"]', "[4294967296]"])
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
    ],
)
def test_damaged_tables_are_refused_by_name(
    tmp_path: Path, name: str, body: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match=message) as caught:
        convert(tmp_path / name, tmp_path / "out", SCORES)
    assert name in str(caught.value)


def test_the_label_range_must_be_stated(rows: Rows, tmp_path: Path) -> None:
    table = write_csv(rows, tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"labels are from -3 to 3\); add --labels"):
        convert(table, tmp_path / "out")
    assert convert(table, tmp_path / "out", Options(dataset="mosi")).labels.low == -3
