"""The one builder of small shard folders: of made-up clips, of two small graphs, and of numbered
samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from graph_folder import write_folder

from data_shards.shards.manifest import Field, Manifest, Sample
from data_shards.shards.writer import write_shard

NUMBERED_FIELDS = {
    "audio": Field("float32", (None, 5)),
    "flag": Field("int16", (1,)),
    "label": Field("float32", ()),
    "label_audio": Field("float32", ()),
    "text": Field("int32", (3, None)),
    "vision": Field("float32", (None, 2)),
}


def sentiment_shards(folder: Path, samples: int = 120, codebooks: bool = True) -> Path:
    """Shards of made-up clips, made as a user makes them."""
    from data_shards.codebook import main as codebook
    from data_shards.convert import main as convert
    from data_shards.synthetic import main as synthetic

    raw, shards = folder / "small.pkl", folder / "shards"
    assert not synthetic([str(raw), "--samples", str(samples)])
    assert not convert([str(raw), "--out", str(shards), "--shard-size", "16"])
    if codebooks:
        assert not codebook([str(shards), "--clusters", "8"])
    return shards


def alignment_shards(folder: Path) -> Path:
    """Shards of two small graphs, half of whose links are for training."""
    from data_shards.convert import convert
    from data_shards.sources.graphs.knowledge_graphs import EntityOptions
    from data_shards.sources.raw_dataset import Options

    raw = write_folder(folder / "raw")
    options = Options(entities=EntityOptions(train_ratio=0.5))
    convert(raw, folder / "graphs", options, shard_size=32)
    return folder / "graphs"


def numbered_shards(
    folder: Path, sizes: Sequence[int], split: str = "train", seed: int = 0
) -> Manifest:
    """A shard folder with ``sizes`` samples per shard; sample i of the split has label i and id
    ``id-i``.

    Every fifth sample lacks its vision, every third its view label, every seventh its flag.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shards, first = [], 0
    for number, size in enumerate(sizes):
        samples = _numbered_samples(rng, split, range(first, first + size))
        shards.append(write_shard(folder, f"{split}-{number:06d}.tar", samples))
        first += size
    manifest = Manifest("tiny", "arrays", NUMBERED_FIELDS, {split: tuple(shards)}, synthetic=True)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _numbered_samples(
    rng: np.random.Generator, split: str, numbers: range
) -> Iterator[tuple[str, Sample]]:
    for number in numbers:
        arrays = {
            "audio": rng.normal(size=(rng.integers(1, 9), 5)).astype(np.float32),
            "text": rng.integers(1, 60, (3, rng.integers(2, 7)), np.int32),
            "label": np.array(number, np.float32),
        }
        if number % 5:
            arrays["vision"] = rng.normal(size=(rng.integers(1, 12), 2)).astype(np.float32)
        if number % 3:
            arrays["label_audio"] = np.array(number / 2, np.float32)
        if number % 7:
            arrays["flag"] = np.array([number % 2], np.int16)
        key = f"{split}_{number:08d}"
        yield key, Sample(f"id-{number}", arrays, f"text {number}", {"place": number})
