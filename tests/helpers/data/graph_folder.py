"""A small alignment folder with everything in it that such a folder can have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

PAIRS = 40
SECOND = 1000  # ids of the right graph begin here: the partner of id i is SECOND + i, as in DBP15K


def write_folder(folder: Path, *, seed: int = 0, views: bool = True) -> Path:
    """Two noisy copies of one random graph, with names, attributes, numbers and images for most
    entities."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    triples = [
        (rng.integers(PAIRS), rng.integers(6), rng.integers(PAIRS)) for _ in range(5 * PAIRS)
    ]
    images: dict[int, np.ndarray] = {}
    vectors = rng.normal(size=(PAIRS, 12)).astype(np.float32)
    for digit, first, relation in (("1", 0, 0), ("2", SECOND, 10)):
        _write(
            folder / f"ent_ids_{digit}", [(first + i, f"http://{digit}/e{i}") for i in range(PAIRS)]
        )
        kept = [(first + h, relation + r, first + t) for h, r, t in triples if rng.random() < 0.9]
        _write(folder / f"triples_{digit}", kept)
        if views:
            attributes = [
                [f"http://{digit}/e{i}", f"shared{i % 7}", f"own{digit}{i % 3}"]
                for i in range(PAIRS)
                if i % 5
            ]
            _write(folder / f"training_attrs_{digit}", attributes)
            _write(
                folder / f"numeric_{digit}",
                [(first + i, f"n{digit}", 3.5 * i) for i in range(PAIRS) if i % 4],
            )
            _write(folder / f"has_image_{digit}", [(first + i,) for i in range(PAIRS) if i % 3])
            images |= {
                first + i: vectors[i] + rng.normal(size=12) * 0.1 for i in range(PAIRS) if i % 3
            }
    _write(folder / "ill_ent_ids", [(i, SECOND + i) for i in range(PAIRS)])
    if views:
        alphabet = np.array(list("abcdefgh"))
        tokens = ["".join(rng.choice(alphabet, 6)) for _ in range(PAIRS)]
        names = [[first + i, [tokens[i], "The"]] for first in (0, SECOND) for i in range(PAIRS)]
        (folder / "translated_ent_name.json").write_text(json.dumps(names))
        ids = sorted(images)
        rows = np.stack([images[entity] for entity in ids]).astype(np.float32)
        np.savez(folder / "images.npz", ids=np.array(ids), vectors=rows)
    return folder


def _write(path: Path, rows: list) -> None:  # type: ignore[type-arg]
    path.write_text(
        "\n".join("\t".join(str(cell) for cell in row) for row in rows)
    )  # no final newline, as in DBP15K
