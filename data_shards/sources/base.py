"""What a reader makes of a raw file: light rows, and samples made from them one at a time.

A reader is a function ``read(raw: Path, options: Options) -> Source``. Rows are small and picklable, so that they can
be counted, grouped into shards and handed to other processes; only ``Source.sample`` touches the arrays.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards.shards.manifest import DataError, Field, Labels, Sample

if TYPE_CHECKING:
    from data_shards.sources.knowledge_graphs import EntityOptions

SPLITS = {
    "train": "train",
    "valid": "valid",
    "test": "test",
    "dev": "valid",
    "val": "valid",
    "validation": "valid",
}

# Range and annotation step of the labels of known data sets.
KNOWN_LABELS = {
    "mosi": Labels(low=-3.0, high=3.0, resolution=0.2),
    "mosei": Labels(low=-3.0, high=3.0, resolution=1 / 3),
    "sims": Labels(low=-1.0, high=1.0, resolution=0.2),
    "simsv2": Labels(low=-1.0, high=1.0, resolution=0.2),
}


@dataclass(frozen=True)
class Options:
    """What the user may say about a raw file."""

    name: str | None = None  # of the data set; by default the file's
    dataset: str | None = None  # a key of KNOWN_LABELS
    labels: Labels | None = None
    text: str = "auto"  # tokens (as given), features, tokenize, or auto
    tokenizer: str | None = None  # folder of a transformers tokenizer
    max_tokens: int | None = None
    entities: EntityOptions | None = None  # of an alignment folder


@dataclass(frozen=True)
class Source:
    """A raw file, ready to be turned into samples. Must be picklable."""

    name: str
    task: str  # "sentiment" or "alignment"
    fields: dict[str, Field]
    labels: Labels
    counts: dict[str, int]  # split -> samples
    rows: Callable[[], Iterator[tuple[str, Any]]]  # (split, row) in file order
    sample: Callable[[Any, Counter[str]], Sample]  # row -> its sample; repairs are counted
    facts: dict[str, Any] = field(
        default_factory=dict
    )  # for Manifest.source: file, bytes, sha256, ...
    stamp: Callable[[Any], str] | None = (
        None  # row -> changes when files that the row points to change
    )
    tokenizer: dict[str, Any] | None = None
    synthetic: bool = False
    extras: dict[str, Any] = field(default_factory=dict)  # for Manifest.extras


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def file_facts(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file, as the manifest records its source."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def as_string(value: Any, where: str) -> str:
    """Text from str, a number, bytes (UTF-8, or Latin-1 where it is not that), or an array of one of them."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if not isinstance(value, str | int | float | np.generic):
        raise DataError(f"{where}: a {type(value).__name__} where text should be")
    return str(value)


def as_numbers(value: Any, dtype: str, where: str) -> np.ndarray:
    """An array of real numbers as ``dtype``. What overflows becomes inf."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biufO":
            raise TypeError(f"its type is {array.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(dtype)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: no array of numbers ({error})") from None


def as_frames(value: Any, where: str) -> np.ndarray:
    """Frames as (T, D) float32; a vector (D,) becomes one frame. Non-finite values stay."""
    frames = as_numbers(value, "<f4", where)
    if frames.ndim == 1:
        frames = frames[None]
    if frames.ndim != 2 or frames.shape[1] == 0:
        raise DataError(
            f"{where}: has shape {frames.shape}; frames are (T, D), or (D,) without a time axis"
        )
    return frames


def finite(frames: np.ndarray, name: str, repairs: Counter[str]) -> np.ndarray:
    """``frames`` with every inf and NaN set to 0 and counted, as its own C-contiguous array."""
    bad = ~np.isfinite(frames)
    if found := int(bad.sum()):
        repairs[f"{name} values not finite, set to 0"] += found
        frames = np.where(bad, np.float32(0), frames)
    return np.ascontiguousarray(frames)


def check_width(frames: np.ndarray, known: Field, where: str) -> None:
    if frames.shape[1] != known.shape[-1]:
        raise DataError(
            f"{where}: has {frames.shape[1]} features, and samples before it have {known.shape[-1]}"
        )


def check_label(value: Any, labels: Labels, where: str) -> np.float32:
    """The label as float32; outside of its range, or no number at all, is refused."""
    try:
        label = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {value!r} is no number") from None
    slack = 1e-6 * (labels.high - labels.low)  # float32 labels were rounded
    if not labels.low - slack <= label <= labels.high + slack:  # also refuses NaN
        raise DataError(
            f"{where}: {label:g} is outside the label range {labels.low:g} to {labels.high:g}; "
            "correct it, or state the range with --labels LOW:HIGH"
        )
    return np.float32(label)


def known_resolution(labels: Labels, values: np.ndarray) -> Labels:
    """``labels`` with a step that every value is a multiple of: its own, or a whole part of it, or none.

    One in seventeen MOSI labels is off its grid of 1/5, because a few clips had more or fewer than five annotators;
    all are multiples of 1/60. Equal labels are only equal for sure on such a grid.
    """
    if labels.resolution is None or not len(values):
        return labels
    for parts in range(1, 21):
        steps = np.asarray(values, dtype=np.float64) / labels.resolution * parts
        if (np.abs(steps - np.round(steps)) < 1e-3).all():
            return replace(labels, resolution=labels.resolution / parts)
    return replace(labels, resolution=None)
