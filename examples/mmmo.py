"""MMMO, word-level sequences with naturally missing modalities, from one ``.npz`` to the table layout.

    python examples/mmmo.py ../shared/data/mfn_sequences/mmmo.npz raw/mmmo
    python -m data_shards.convert raw/mmmo/mmmo.csv --out shards/mmmo --labels 1:5:.5 --text features

The arrays are padded with zero rows in front and behind, so each sequence is what lies between its first and last row
that is not zero. All sequences of a modality go one after the other into one array; the table points to their rows.
A sequence without such rows is a modality that the sample lacks: its cell stays empty.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

COLUMNS = {
    "text": "text_features",
    "audio": "audio",
    "video": "vision",
}  # name in the .npz -> column of the table
SPLITS = ("train", "valid", "test")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with np.load(given.npz, allow_pickle=False) as npz:
        rows = [
            {"id": f"{split}_{i}", "split": split, "label": label}
            for split in SPLITS
            for i, label in enumerate(npz[f"y_{split}"])
        ]
        for name, column in COLUMNS.items():
            place, pieces, stop = 0, [], 0
            for split in SPLITS:
                sequences = npz.get(f"{name}_{split}")  # (N, 20, D); the train text is not there
                for i in range(len(npz[f"y_{split}"])):
                    used = np.flatnonzero(sequences[i].any(axis=1) if sequences is not None else [])
                    if len(used):
                        pieces.append(sequences[i, used[0] : used[-1] + 1])
                        start, stop = stop, stop + len(pieces[-1])
                        rows[place][column] = f"{column}.npy[{start}:{stop}]"
                    place += 1
            np.save(given.out / f"{column}.npy", np.concatenate(pieces))
    with (given.out / "mmmo.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["id", "split", "label", *COLUMNS.values()], restval="")
        table.writeheader()
        table.writerows(rows)
    print(
        f"wrote {given.out / 'mmmo.csv'}; convert it with: python -m data_shards.convert {given.out / 'mmmo.csv'} "
        "--out shards/mmmo --labels 1:5:.5 --text features"
    )


if __name__ == "__main__":
    main()
