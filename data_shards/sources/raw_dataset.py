"""What a reader makes of a raw file: light rows, and samples made from them one at a time.

A reader is a function ``read(raw: Path, options: Options) -> RawDataset``. Rows are small and
picklable, so that they can be counted, grouped into shards and handed to other processes; only
``RawDataset.sample`` touches the arrays.

The readers are the project's own because they are strict on purpose: a pickle that would execute
something, a label outside its range, an array of another width is refused with the sample's id, and
what is repaired is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from core.files import sha256_of_file
from data_shards.shards.manifest import DataError, Field, Labels, Sample, Task

if TYPE_CHECKING:
    from data_shards.sources.knowledge_graphs import EntityOptions

SPLITS = ("train", "valid", "test")
# How raw files call the splits.
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "test": "test",
    "dev": "valid",
    "val": "valid",
    "validation": "valid",
}

# what a modality may be called; fields that begin with "label" are labels
MODALITY_NAME = re.compile(r"(?!label)[A-Za-z][A-Za-z0-9_-]*")

KnownDataset = Literal["mosi", "mosei", "sims", "simsv2"]
# Range and annotation step of the labels of known data sets.
KNOWN_LABELS: dict[KnownDataset, Labels] = {
    "mosi": Labels(low=-3.0, high=3.0, resolution=0.2),
    "mosei": Labels(low=-3.0, high=3.0, resolution=1 / 3),
    "sims": Labels(low=-1.0, high=1.0, resolution=0.2),
    "simsv2": Labels(low=-1.0, high=1.0, resolution=0.2),
}


TextChoice = Literal["auto", "tokens", "features", "tokenize"]


@dataclass(frozen=True)
class Options:
    """What the user may say about a raw file."""

    name: str | None = None  # of the data set; by default the file's
    dataset: KnownDataset | None = None  # which known data set this is
    labels: Labels | None = None
    text: TextChoice = "auto"  # tokens: ids as they stand in the file
    tokenizer: str | None = None  # folder of a transformers tokenizer
    max_tokens: int | None = None
    rename: dict[str, str] | None = None  # modality of the raw data -> its name in the shards
    entities: EntityOptions | None = None  # of an alignment folder


@dataclass(frozen=True)
class RawDataset:
    """A raw file, ready to be turned into samples. Must be picklable."""

    name: str
    task: Task
    fields: dict[str, Field]
    labels: Labels
    counts: dict[str, int]  # split -> samples
    # (split, row) in file order
    rows: Callable[[], Iterator[tuple[str, Any]]]
    # row -> its sample; repairs are counted
    sample: Callable[[Any, Counter[str]], Sample]
    # for Manifest.source: file, bytes, sha256, ...
    facts: dict[str, Any] = field(default_factory=dict)
    # row -> a string that changes when files that the row points to change
    stamp: Callable[[Any], str] | None = None
    tokenizer: dict[str, Any] | None = None
    synthetic: bool = False
    extras: dict[str, Any] = field(default_factory=dict)  # for Manifest.extras


def file_facts(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file, as the manifest records its source."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def as_string(value: Any, where: str) -> str:
    """Text from str, a number, bytes (UTF-8, else Latin-1), or an array of one of them."""
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
    is_finite = np.isfinite(frames)
    if not is_finite.all():
        repairs[f"{name} values not finite, set to 0"] += int((~is_finite).sum())
        frames = np.where(is_finite, frames, np.float32(0))
    return np.ascontiguousarray(frames)


def check_width(frames: np.ndarray, known: Field, where: str) -> None:
    """DataError unless frames (T, D) are as wide as those of the field before them."""
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
    """``labels`` with a step that every value is a multiple of: its own, or a whole part of it, or
    none.

    One in seventeen MOSI labels is off its grid of 1/5, because a few clips had more or fewer than
    five annotators; all are multiples of 1/60. Equal labels are only equal for sure on such a grid.
    """
    if labels.resolution is None or not len(values):
        return labels
    for divisor in range(1, 21):
        steps = np.asarray(values, dtype=np.float64) / labels.resolution * divisor
        off_grid = np.abs(steps - np.round(steps))
        if (off_grid < 1e-3).all():
            return replace(labels, resolution=labels.resolution / divisor)
    return replace(labels, resolution=None)


def stated_labels(
    raw: Path, options: Options, dataset: KnownDataset | None, seen: str = ""
) -> Labels:
    """The label range that the user states, or that of the known data set; DataError where neither
    is known.

    Args:
        seen: what the file's labels look like, for the message.
    """
    if options.labels:
        return options.labels
    if dataset is None:
        raise DataError(
            f"{raw}: the label range is not known{seen}; "
            f"add --labels LOW:HIGH[:STEP], or --dataset {'|'.join(KNOWN_LABELS)}"
        )
    return KNOWN_LABELS[dataset]
