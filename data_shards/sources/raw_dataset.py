"""What a reader makes of a raw file: light rows, and samples made from them one at a time.

A reader is a function ``read(raw: Path, options: Options) -> RawDataset``. Rows are small and
picklable, so that they can be counted, grouped into shards and handed to other processes; only
``RawDataset.sample`` touches the arrays.

The readers are the project's own because they are strict on purpose: a pickle that would execute
something, a label outside its range, an array of another width is refused with the sample's id, and
what is repaired is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from core.files import sha256_of_file
from data_shards.extract.recipe import ExtractionRecipe
from data_shards.media.media_kinds import Media
from data_shards.shards.manifest import DataError, Field, Labels, Sample, Task
from data_shards.shards.single_values import shown

if TYPE_CHECKING:
    from data_shards.sources.graphs.knowledge_graphs import EntityOptions

KnownDataset = Literal["mosi", "mosei", "sims", "simsv2"]
# Range and annotation step of the labels of known data sets.
KNOWN_LABELS: dict[KnownDataset, Labels] = {
    "mosi": Labels(low=-3.0, high=3.0, resolution=0.2),
    "mosei": Labels(low=-3.0, high=3.0, resolution=1 / 3),
    "sims": Labels(low=-1.0, high=1.0, resolution=0.2),
    "simsv2": Labels(low=-1.0, high=1.0, resolution=0.2),
}


WIDEST = 2**20  # features of a frame, exclusive
MOST_NUMBERS = 2**24  # in one cell that holds them as lists

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
    targets: tuple[str, ...] | None = None  # columns of a table that together are the label
    emotions: int | None = None  # of a file of dialogues: how many classes of them
    fold: int | None = None  # of OpenEA's links; 1 where nothing is said
    media: dict[str, Media] | None = None  # columns of a table that name files of sound or pictures


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
    extraction: ExtractionRecipe | None = None  # how features were made from clips


def refuse_idle_options(options: Options, dataset: RawDataset, raw: Path) -> None:
    """DataError for an option that says nothing about such a file."""
    layout = dataset.facts.get("layout")
    if options.targets and layout != "table":
        raise DataError(
            f"{raw} is no table, and --targets names columns of one; leave it out, or write a table "
            "(docs/data.md)"
        )
    if options.media and layout != "table":
        raise DataError(
            f"{raw} is no table, and --media names columns of one; leave it out, or write a table "
            "(docs/data.md)"
        )
    if options.emotions is not None and layout != "dialogues":
        raise DataError(f"{raw} is no file of dialogues, whose classes --emotions chooses")
    if options.fold is not None and layout != "openea":
        raise DataError(f"{raw} is no folder of OpenEA, whose links have folds; leave out --fold")


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
    try:
        text = str(value)
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: {shown(value)} is no valid Unicode; correct it") from None
    except ValueError:  # thousands of digits
        raise DataError(f"{where}: {shown(value)} where text should be") from None
    return text


def as_numbers(value: Any, dtype: str, where: str) -> np.ndarray:
    """An array of real numbers as ``dtype``. What overflows becomes inf."""
    if not isinstance(value, np.ndarray):
        _check_extent(value, where)
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biufO":
            raise TypeError(f"its type is {array.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(dtype)
    except (TypeError, ValueError, OverflowError) as error:
        problem = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: no array of numbers ({problem})") from None


def _check_extent(value: Any, where: str) -> None:
    """Refused where nested lists hold too many numbers: a list that stands in another a thousand
    times costs its file nothing."""
    known: dict[int, int] = {}  # a list's id -> numbers in it, lists within it spread out

    def count(item: Any) -> int:
        if isinstance(item, np.ndarray):
            return item.size
        if not isinstance(item, list | tuple):
            return 1
        if id(item) not in known:
            known[id(item)] = sum(count(inner) for inner in item)
        return known[id(item)]

    numbers = count(value)
    if numbers > MOST_NUMBERS:
        raise DataError(
            f"{where}: lists of {numbers} numbers; at most {MOST_NUMBERS} are read as lists, "
            "so store arrays"
        )


def as_frames(value: Any, where: str) -> np.ndarray:
    """Frames as (T, D) float32; a vector (D,) becomes one frame. Non-finite values stay.

    A value without any, such as None, [] or an array (0, D), gives no frames: (0, D), D being 0
    where it is not known. The sample lacks that modality.
    """
    if value is None:
        return np.zeros((0, 0), "<f4")
    frames = as_numbers(value, "<f4", where)
    if frames.ndim == 1:
        frames = frames[None] if len(frames) else frames.reshape(0, 0)
    has_frames = frames.ndim == 2 and len(frames) > 0
    if frames.ndim != 2 or (has_frames and frames.shape[1] == 0):
        raise DataError(
            f"{where}: has shape {np.shape(value)}; frames are (T, D), or (D,) without a time axis"
        )
    if frames.shape[1] >= WIDEST:
        raise DataError(
            f"{where}: has shape {np.shape(value)}; frames have fewer than {WIDEST} features"
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
    """DataError unless frames (T, D), if any, are as wide as those of the field before them."""
    if len(frames) and frames.shape[1] != known.shape[-1]:
        raise DataError(
            f"{where}: has {frames.shape[1]} features, and samples before it have {known.shape[-1]}"
        )


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
