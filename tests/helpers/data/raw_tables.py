"""A small data set in the table layout, and tables of every kind."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from data_shards.shards.manifest import Labels
from data_shards.sources.raw_dataset import Options

SCORES = Options(labels=Labels(low=-3, high=3))
RNG = np.random.default_rng(0)
AUDIO = RNG.normal(size=(4, 7, 3)).astype(np.float32)
VISION = RNG.normal(size=(4, 2))

Rows = list[dict[str, Any]]


def write_arrays(folder: Path) -> Rows:
    """Arrays in ``folder``, and four rows that point to them in every way there is."""
    np.savez(folder / "some.npz", first=AUDIO[0], stack=AUDIO)
    np.save(folder / "vision.npy", VISION)
    (folder / "deep").mkdir()
    np.save(folder / "deep" / "frames.npy", AUDIO.reshape(-1, 3))
    return [
        {
            "id": "a",
            "split": "train",
            "label": 1.5,
            "text": "fine",
            "audio": "some.npz#first",
            "vision": "vision.npy[0]",
        },
        {
            "id": "b",
            "split": "train",
            "label": -3,
            "text": "no",
            "audio": "some.npz#stack[1]",
            "vision": "",
        },
        {
            "id": "7",
            "split": "dev",
            "label": 0,
            "text": "",
            "audio": "deep/frames.npy[15:17]",
            "vision": "vision.npy[2]",
        },
        {
            "id": 'd,\n"é',
            "split": "test",
            "label": 3,
            "text": "x",
            "audio": "",
            "vision": "vision.npy[3]",
        },
    ]


def write_csv(rows: Rows, path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_json(rows: Rows, path: Path) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def write_parquet(rows: Rows, path: Path) -> Path:
    cleaned = [
        {name: None if value == "" else value for name, value in row.items()} for row in rows
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(cleaned), path)
    return path
