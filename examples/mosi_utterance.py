"""CMU-MOSI at utterance level, from one ``.npz`` to the table layout.

    python examples/mosi_utterance.py ../shared/data/mosi_utterance/mosi_utterance.npz raw/mosi
    --split bclstm python -m data_shards.convert raw/mosi/mosi.csv --out shards/mosi --dataset mosi
    --tokenizer MODEL_FOLDER

Sound and video were extracted with networks trained on the train videos of the bc-LSTM split, so
only that split gives scores that mean something (``--split standard`` leaks most of its test
clips). It has no validation videos: they are drawn here from the train videos, with a seed, so that
their labels are spread like those of the videos that stay. The draw stands in the table's split
column.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

VALID_SHARE = 0.15  # of the train videos
DRAWS = 200


def splits(npz: np.lib.npyio.NpzFile, split: str, seed: int) -> np.ndarray:
    """(N,) train, valid or test of each clip; clips of a video stay together."""
    named = npz[f"split_{split}"].copy()
    if split == "bclstm":
        is_valid = draw(npz["video_id"], npz["label"], named == "train", seed)
        named[is_valid] = "valid"
    return named


def draw(video: np.ndarray, label: np.ndarray, train: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool, the clips of the validation videos: of many draws the one whose labels differ
    least from the rest.
    """
    rng = np.random.default_rng(seed)
    videos = np.unique(video[train])
    num_valid = round(VALID_SHARE * len(videos))
    best, smallest = train, np.inf
    for _ in range(DRAWS):
        chosen = train & np.isin(video, rng.choice(videos, num_valid, replace=False))
        valid, rest = label[chosen], label[train & ~chosen]
        difference = abs(valid.mean() - rest.mean()) + abs(valid.std() - rest.std())
        if difference < smallest:
            best, smallest = chosen, difference
    return best


def convert(npz: np.lib.npyio.NpzFile, out: Path, split: np.ndarray) -> None:
    """Write the table and its arrays into the folder ``out``; ``split`` (N,) is of each clip."""
    np.save(out / "audio.npy", npz["audio"])  # (2199, 73)
    np.save(out / "vision.npy", npz["video"])  # (2199, 100)
    columns = {
        "id": npz["utt_id"],
        "split": split,
        "label": npz["label"],
        "video": npz["video_id"],
        "segment": npz["segment"],
        "text": npz["transcript"],
    }
    with (out / "mosi.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow([*columns, "audio", "vision"])
        for i, cells in enumerate(zip(*columns.values(), strict=True)):
            table.writerow([*cells, f"audio.npy[{i}]", f"vision.npy[{i}]"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=["bclstm", "standard"], default="bclstm")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of validation videos")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with np.load(arguments.npz, allow_pickle=False) as npz:
        convert(npz, out, splits(npz, arguments.split, arguments.seed))
    print(
        f"wrote {out / 'mosi.csv'}; convert it with: "
        f"python -m data_shards.convert {out / 'mosi.csv'} "
        "--out shards/mosi --dataset mosi --tokenizer MODEL_FOLDER"
    )


if __name__ == "__main__":
    main()
