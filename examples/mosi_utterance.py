"""CMU-MOSI at utterance level, from one ``.npz`` to the table layout.

    python examples/mosi_utterance.py ../shared/data/mosi_utterance/mosi_utterance.npz raw/mosi
    python -m data_shards.convert raw/mosi/mosi.csv --out shards/mosi --dataset mosi
    --tokenizer MODEL_FOLDER

Text and video vectors were extracted with networks supervised on the labels of the train videos of
the bc-LSTM split, and of no others. So its 62 train videos train; validation must come from videos
whose labels no extractor has seen, or selection prefers whatever trusts the vectors most. Of the 31
videos outside of train, 10 are drawn here for validation, with a seed, so that their labels are
spread like those of the other 21, which are the test. The draw stands in the table's split column;
``python -m data_shards.inspect`` shows the leak where there is one.

``--split standard`` is the usual split of MOSI; most of its test clips were among the extractors'
train videos, so its scores mean nothing.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

NUM_VALID = 10  # of the 31 videos that no extractor was trained on; the other 21 are the test
DRAWS = 200


def splits(npz: np.lib.npyio.NpzFile, split: str, seed: int) -> np.ndarray:
    """(N,) train, valid or test of each clip; clips of a video stay together."""
    named = npz[f"split_{split}"].copy()
    if split == "bclstm":
        is_valid = draw(npz["video_id"], npz["label"], named == "test", seed)
        named[is_valid] = "valid"
    return named


def draw(video: np.ndarray, label: np.ndarray, unseen: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool, the clips of the validation videos: of many draws the one whose labels differ
    least from the rest.

    Args:
        unseen: (N,) bool, the clips of the videos that may be drawn.
    """
    rng = np.random.default_rng(seed)
    videos = np.unique(video[unseen])
    best, smallest = unseen, np.inf
    for _ in range(DRAWS):
        chosen = unseen & np.isin(video, rng.choice(videos, NUM_VALID, replace=False))
        valid, rest = label[chosen], label[unseen & ~chosen]
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
