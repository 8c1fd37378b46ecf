"""MMMO, word-level sequences with naturally missing modalities, from one ``.npz`` to the table
layout.

    python examples/mmmo.py ../shared/data/mfn_sequences/mmmo.npz raw/mmmo
    python -m data_shards.convert raw/mmmo/mmmo.csv --out shards/mmmo --labels 1:5:.5 --text
    features

The arrays are padded with zero rows in front and behind, so each sequence is what lies between its
first and last row that is not zero. All sequences of a modality go one after the other into one
array; the table points to their rows. A sequence without such rows is a modality that the sample
lacks: its cell stays empty.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

# Name in the .npz -> column of the table.
COLUMNS = {"text": "text_features", "audio": "audio", "video": "vision"}
SPLITS = ("train", "valid", "test")


def convert(npz: np.lib.npyio.NpzFile, out: Path) -> None:
    """Write the table and its arrays into the folder ``out``."""
    rows = []
    for split in SPLITS:
        for i, label in enumerate(npz[f"y_{split}"]):
            rows.append({"id": f"{split}_{i}", "split": split, "label": label})
    for name, column in COLUMNS.items():
        cells, frames = references(npz, name, column)
        for row, cell in zip(rows, cells, strict=True):
            row[column] = cell
        np.save(out / f"{column}.npy", frames)
    with (out / "mmmo.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["id", "split", "label", *COLUMNS.values()])
        table.writeheader()
        table.writerows(rows)


def references(npz: np.lib.npyio.NpzFile, name: str, column: str) -> tuple[list[str], np.ndarray]:
    """One cell per sample, empty where the sample lacks the modality, and all frames (T, D) one
    after the other.
    """
    cells = []
    sequences = []
    end = 0
    for split in SPLITS:
        padded = npz.get(f"{name}_{split}")  # (N, 20, D); the train text is not there
        for i in range(len(npz[f"y_{split}"])):
            used = [] if padded is None else np.flatnonzero(padded[i].any(axis=1))
            if len(used) == 0:
                cells.append("")
                continue
            sequence = padded[i, used[0] : used[-1] + 1]
            start, end = end, end + len(sequence)
            cells.append(f"{column}.npy[{start}:{end}]")
            sequences.append(sequence)
    return cells, np.concatenate(sequences)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with np.load(arguments.npz, allow_pickle=False) as npz:
        convert(npz, out)
    print(
        f"wrote {out / 'mmmo.csv'}; convert it with: "
        f"python -m data_shards.convert {out / 'mmmo.csv'} "
        "--out shards/mmmo --labels 1:5:.5 --text features"
    )


if __name__ == "__main__":
    main()
