"""What lies in a shard folder: samples, shards, and the manifest that vouches for them.

A shard folder holds ``manifest.json``, one or more tar files per split (``train-000000.tar``, ...; plain WebDataset)
and beside each tar its index. The manifest is written last: a folder without one is not a data set.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "concord-shards"
VERSION = 1
MANIFEST = "manifest.json"


class DataError(ValueError):
    """Data that cannot be used: the message says what is wrong, where, and what to do next."""


@dataclass(frozen=True)
class Field:
    """An array that samples carry under this name, as ``<key>.<name>.npy``."""

    dtype: str  # NumPy name: "int32", "float32"
    shape: tuple[int | None, ...]  # None marks the time axis; at most one


@dataclass(frozen=True)
class Sample:
    """One sample on its way into a shard. An array that a sample lacks is simply not there."""

    id: str  # as the source names it: "video$_$clip"
    arrays: dict[str, np.ndarray]  # field name -> array at its true length, C-contiguous, little-endian
    text: str | None = None  # transcript, stored as <key>.txt
    extra: dict[str, Any] = field(default_factory=dict)  # plain JSON, stored with the id as <key>.json


@dataclass(frozen=True)
class Shard:
    """One tar file as the manifest knows it."""

    name: str  # "train-000000.tar"
    samples: int
    bytes: int
    sha256: str
    index_sha256: str  # of "train-000000.idx", the index beside the tar


@dataclass(frozen=True)
class Labels:
    """What the labels mean."""

    kind: str = "regression"  # or "classes"
    low: float = -3.0
    high: float = 3.0
    resolution: float | None = None  # annotated in multiples of this (1/5, 1/3); None: any float
    names: tuple[str, ...] = ()  # class names, for "classes"


@dataclass(frozen=True)
class Manifest:
    """Everything about a shard folder that is known without opening a shard."""

    name: str
    task: str  # "sentiment" or "alignment"
    fields: dict[str, Field]
    splits: dict[str, tuple[Shard, ...]]
    labels: Labels = Labels()
    synthetic: bool = False
    source: dict[str, Any] = field(default_factory=dict)  # file name, bytes, sha256, and the options of the conversion
    tokenizer: dict[str, Any] | None = None  # name, vocab_size, sha256 of the vocabulary, special ids
    moments: dict[str, tuple[list[float], list[float]]] = field(
        default_factory=dict
    )  # field -> mean, std of train frames
    max_length: dict[str, int] = field(default_factory=dict)  # field -> longest in any split
    repairs: dict[str, int] = field(default_factory=dict)  # what was mended on the way in, and how often
    extras: dict[str, Any] = field(default_factory=dict)  # further files of the folder: name -> sha256, and task facts

    def samples(self, split: str) -> int:
        return sum(shard.samples for shard in self.splits[split])

    def to_json(self) -> str:
        body = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> Manifest:
        """Parse and check; anything missing or of the wrong kind is a DataError that names ``where``."""
        from data_shards.manifest_check import parse

        return parse(text, where)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{folder} has no {MANIFEST}, so it is no finished shard folder; "
            f"make one with: python -m data_shards.convert RAW --out {folder}"
        )
    return Manifest.from_json(path.read_text(encoding="utf-8"), str(path))
