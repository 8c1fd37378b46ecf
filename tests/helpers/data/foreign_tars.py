"""One small data set, as a table and as tars of webdataset's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from raw_tables import write_json

Arrays = dict[str, Any]
Clips = dict[str, list[Arrays]]  # split -> the arrays of each clip by field
COUNTS = {"train": 24, "valid": 8, "test": 8}


def clips(target: str = "label", seed: int = 0) -> Clips:
    """Clips with loud sound, faces in float64, token ids, and scores from 1 to 5 or classes."""
    rng = np.random.default_rng(seed)
    made: Clips = {}
    for split, count in COUNTS.items():
        made[split] = []
        for number in range(count):
            frames, words = rng.integers(2, 9, 2)
            clip: Arrays = {
                "text": rng.integers(4, 60, words),
                "audio": rng.normal(1000, 350, (frames, 5)).astype(np.float32),
                "vision": rng.normal(size=(frames, 3)),
            }
            if number % 5 == 4:
                del clip["vision"]
            steps = int(rng.integers(0, 9))
            if target == "label":
                clip["label"] = np.float32([1.0, 5.0][number] if number < 2 else 1 + steps / 2)
            else:
                clip["class"] = np.int64(number % 3)
            made[split].append(clip)
    return made


def write_tars(
    made: Clips, folder: Path, names: dict[str, str] | None = None, key: str = "", **others: Any
) -> Path:
    """A tar per split; keys begin with ``key``, ``others`` are further members of every sample."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, samples in made.items():
        name = (names or {}).get(split, f"{split}-000000")
        with wds.TarWriter(str(folder / f"{name}.tar"), encoder=True) as sink:
            for number, arrays in enumerate(samples):
                members = {f"{field}.npy": np.asarray(array) for field, array in arrays.items()}
                sink.write({"__key__": f"{key}{split}_{number:04d}", **members, **others})
    return folder


def write_table(made: Clips, folder: Path) -> Path:
    """The same clips as a table with one array file per array."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split, samples in made.items():
        for number, arrays in enumerate(samples):
            key = f"{split}_{number:04d}"
            row: dict[str, Any] = {"id": key, "split": split}
            for field, array in arrays.items():
                if field in ("label", "class"):
                    row[field] = float(array) if field == "label" else int(array)
                    continue
                np.save(folder / f"{key}.{field}.npy", array)
                row["tokens" if field == "text" else field] = f"{key}.{field}.npy"
            rows.append(row)
    return write_json(rows, folder / "table.jsonl")
