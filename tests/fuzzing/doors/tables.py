"""Tables with array files beside them through ``convert``: CSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from fuzzing import Case, Files, Special, names_of, pass_command
from mutations import spoil_bytes, spoil_lines, spoil_tree, value
from spoilt_arrays import npy, npz, spoil_npy, spoil_npz

from data_shards import convert

AUDIO = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
VISION = np.random.default_rng(1).normal(size=(4, 2))
Rows = list[dict[str, Any]]
KINDS = ("csv", "jsonl", "parquet")


def _rows(target: str) -> Rows:
    """Four rows that point to arrays in every way there is."""
    splits = ("train", "train", "dev", "test")
    audio = ("some.npz#first", "some.npz#stack[1]", "deep/frames.npy[15:17]", "")
    rows: Rows = []
    for i, (split, reference) in enumerate(zip(splits, audio, strict=True)):
        row = {"id": f"v$_${i}", "split": split, target: i - 1, "text": "fine", "audio": reference}
        rows.append(
            row | {"vision": f"vision.npy[{i}]", "tokens": f"[{i}, 5]", "video": "v", "note": 0.5}
        )
    return rows


def _arrays() -> dict[str, Any]:
    return {
        "some.npz": {"first": AUDIO[0], "stack": AUDIO},
        "vision.npy": VISION,
        "deep/frames.npy": AUDIO.reshape(-1, 3),
    }


def _array_file(array: Any) -> bytes:
    return npz(array) if isinstance(array, dict) else npy(array)


def _table(rows: Any, kind: str) -> bytes:
    """The rows as the bytes of a table; Parquet holds of them what it can."""
    rows = (
        [row if isinstance(row, dict) else {"id": row} for row in rows]
        if isinstance(rows, list)
        else [{}]
    )
    if kind == "jsonl":
        lines = [json.dumps(row, default=str, skipkeys=True) for row in rows]
        return "\n".join(lines).encode()
    if kind == "csv":
        file = io.StringIO()
        names = list(dict.fromkeys(name for row in rows for name in row))
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)
        return file.getvalue().encode("utf-8", "surrogatepass")
    sink = io.BytesIO()
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    names = [name.encode("utf-8", "replace").decode() for name in names]
    columns = {name: _column([row.get(name) for row in rows]) for name in names}
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def _column(cells: list[Any]) -> pyarrow.Array:
    """The cells as Parquet can hold them, which a record without fields cannot."""
    cells = [None if cell == "" else cell for cell in cells]
    try:
        column = pyarrow.array(cells)
        pyarrow.parquet.write_table(pyarrow.table({"cells": column}), io.BytesIO())
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        return pyarrow.array([ascii(cell) for cell in cells])
    return column


class Tables:
    def valid(self) -> list[Case]:
        return [
            _case(_files(_rows("label" if kind != "jsonl" else "class"), kind), kind)
            for kind in KINDS
        ]

    def spoilt(self, rng: Random) -> Case:
        kind = rng.choice(KINDS)
        target = rng.choice(("label", "label", "class"))
        rows = _rows(target)
        spoils = rng.random()
        if spoils < 0.4:
            rows = spoil_tree(rng, rows)
        elif spoils < 0.5:  # one column throughout
            name = rng.choice(list(rows[0]))
            other = value(rng)
            rows = [row | {name: other} for row in rows]
        files = _files(rows, kind)
        table = f"table.{kind}"
        if 0.5 <= spoils < 0.65:
            spoil = spoil_lines if kind != "parquet" and rng.random() < 0.5 else spoil_bytes
            files[table] = spoil(rng, files[table])  # type: ignore[arg-type]
        elif 0.65 <= spoils < 0.97:
            name = rng.choice(list(_arrays()))
            array = _arrays()[name]
            files[name] = (
                spoil_npz(rng, array) if isinstance(array, dict) else spoil_npy(rng, array)
            )
        elif spoils >= 0.97:
            files[rng.choice(list(files))] = rng.choice(list(Special))
        return _case(
            files,
            kind,
            "scores" if target == "label" else "",
            rng.choice(("auto", "features", "tokens")),
        )

    def enter(self, folder: Path, case: Case) -> None:
        (table,) = folder.glob("table.*")
        pass_command(convert.main, [str(table), "--out", str(folder / "out"), *case.words])


def _files(rows: Any, kind: str) -> Files:
    files: Files = {name: _array_file(array) for name, array in _arrays().items()}
    return files | {f"table.{kind}": _table(rows, kind)}


def _case(files: Files, kind: str, labels: str | None = None, text: str = "auto") -> Case:
    if labels is None:
        labels = "scores" if kind != "jsonl" else ""
    words = ["--text", text, *(["--labels", "-3:3"] if labels else [])]
    return Case(files, words, names_of(files))


def open_door(scratch: Path) -> Tables:
    return Tables()
