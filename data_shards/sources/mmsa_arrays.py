"""What the arrays of an MMSA file say of themselves: where padding is, which way token ids lie,
what is text, and which known data set it seems to be.

The layout has no fixed rules for these, so they are found out from the arrays: zero padding stands
on either side, some extractors write token ids as (L, 3) instead of (3, L), and aligned files share
one time axis. Which data set it is decides what range the labels have and whose token ids these
are; that guess is said aloud, can be overruled, and never makes scores of numbers of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.shards.manifest import DataError, Labels
from data_shards.shards.manifest_facts import LARGEST_ID
from data_shards.sources.raw_dataset import KNOWN_LABELS, KnownDataset, as_frames, as_numbers

SEQUENCES = ("audio", "vision")
# Widths of sound and vision tell the published feature sets apart.
WIDTHS: dict[tuple[int, int], KnownDataset] = {
    (5, 20): "mosi",
    (74, 35): "mosei",
    (33, 709): "sims",
    (25, 177): "simsv2",
}
ROWS_LOOKED_AT = 8  # per split, to tell rows of token ids from columns


@dataclass(frozen=True)
class Part:
    """One split as it lies in the file; every column has one entry per sample."""

    where: str  # "file.pkl: train"
    ids: list[str]
    labels: dict[str, Sequence[Any]]  # field -> raw values
    # text_bert, text, audio, vision, raw_text, annotations: those that are there
    columns: dict[str, Sequence[Any]]
    lengths: dict[str, Sequence[Any]]  # modality -> stored lengths

    def __len__(self) -> int:
        return len(self.ids)

    def describe(self, i: int) -> str:
        """Where sample ``i`` stands, for messages."""
        return f"{self.where}, sample {i} ({self.ids[i]!r})"

    def frames(self, modality: str, i: int) -> np.ndarray:
        """(T, D) float32, as padded as they lie in the file; (0, D) where there are none."""
        return as_frames(self.columns[modality][i], f"{self.describe(i)}: {modality}")


def widths_of(parts: dict[str, Part]) -> dict[str, int]:
    """Modality -> features per frame, of the modalities that any sample of any split has."""
    widths: dict[str, int] = {}
    for modality in (*SEQUENCES, "text"):
        for part in parts.values():
            if modality in part.columns and modality not in widths:
                width = _first_width(part, modality)
                if width:
                    widths[modality] = width
    return widths


def _first_width(part: Part, modality: str) -> int:
    """Features per frame of the first sample that says; 0 where none does."""
    for i in range(len(part)):
        width = part.frames(modality, i).shape[1]
        if width:
            return width
    return 0


@dataclass(frozen=True)
class TokenRows:
    """The three rows of ``text_bert`` for one sample, each (L,) int64."""

    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray

    def used(self) -> np.ndarray:
        """Positions of the tokens that are not padding."""
        return np.flatnonzero(self.mask)


def token_rows(part: Part, i: int, swapped: bool) -> TokenRows:
    """Token ids, mask and types of a sample; DataError for anything that they cannot be."""
    where = part.describe(i)
    rows = as_numbers(part.columns["text_bert"][i], "f8", f"{where}: text_bert")
    if swapped:
        rows = rows.T
    if rows.ndim != 2 or len(rows) != 3:
        raise DataError(
            f"{where}: text_bert has shape {rows.shape}; it must be (3, L): ids, mask, types"
        )
    is_whole = np.isfinite(rows) & (rows == np.round(rows))
    is_id = is_whole & (rows >= 0) & (rows < LARGEST_ID)
    if not is_id.all():
        raise DataError(f"{where}: text_bert holds {rows[~is_id][0]:g}, which is no token id")
    if (rows[1] > 1).any():
        raise DataError(
            f"{where}: the attention mask of text_bert holds {rows[1].max():g}; it must be 0 or 1"
        )
    ids, mask, types = rows.astype(np.int64)
    return TokenRows(ids, mask, types)


def token_ids_are_swapped(parts: dict[str, Part]) -> bool:
    """Whether token ids lie as (L, 3); where L is 3, the mask of 0 and 1 tells."""
    looked_at = []
    for part in parts.values():
        for i in range(min(ROWS_LOOKED_AT, len(part))):
            where = f"{part.describe(i)}: text_bert"
            looked_at.append(as_numbers(part.columns["text_bert"][i], "f8", where))
    shape = looked_at[0].shape
    if len(shape) != 2 or 3 not in shape:
        return False  # refused, with its id, when the sample is made
    if shape != (3, 3):
        return shape[0] != 3
    square = [rows for rows in looked_at if rows.shape == (3, 3)]
    as_rows = sum(_could_be_token_rows(rows) for rows in square)
    as_columns = sum(_could_be_token_rows(rows.T) for rows in square)
    return as_columns > as_rows


def _could_be_token_rows(rows: np.ndarray) -> bool:
    """Whether mask and types are 0 and 1 only, and the mask begins with 1."""
    mask_and_types = rows[1:]
    are_flags = np.isin(mask_and_types, (0, 1)).all()
    begins_with_token = rows[1, 0] == 1
    return bool(are_flags and begins_with_token)


def pads_left(parts: dict[str, Part], modality: str) -> bool:
    """Whether padding is in front; a few frames of zeros may be data at either end."""
    before = after = 0
    for part in parts.values():
        if modality not in part.columns:
            continue
        for i in range(len(part)):
            frames = part.frames(modality, i)
            start, stop = used_extent(frames)
            before += start
            after += len(frames) - stop
    return before > after


def used_extent(frames: np.ndarray) -> tuple[int, int]:
    """Start and end of what is not zero at the ends; (0, 0) where all is zero."""
    used = np.flatnonzero((frames != 0).any(axis=1))  # inf and NaN are data too, to be repaired
    if not len(used):
        return 0, 0
    return int(used[0]), int(used[-1]) + 1


def is_aligned(part: Part, modalities: list[str]) -> bool:
    """One time axis for all: no lengths are stored, and all padded arrays are equally long."""
    if part.lengths or len(modalities) < 2:
        return False
    present = [m for m in modalities if m in part.columns]
    for i in range(len(part)):
        lengths = {len(part.frames(m, i)) for m in present}
        if 0 in lengths:
            continue  # a sample without one of them says nothing
        if "text_bert" in part.columns:
            lengths.add(max(np.shape(part.columns["text_bert"][i]), default=0))
        return len(lengths) == 1 and lengths != {1}
    return False


def largest_token_id(parts: dict[str, Part], swapped: bool) -> int:
    """The largest token id of all samples."""
    largest = 0
    for part in parts.values():
        for i in range(len(part)):
            ids = token_rows(part, i, swapped).ids
            largest = max(largest, int(ids.max(initial=0)))
    return largest


@dataclass(frozen=True)
class Assumed:
    """A data set that a file seems to be."""

    dataset: KnownDataset
    reason: str

    def check(self, raw: Path, labels: Sequence[Any]) -> None:
        """DataError where the labels, numbers within its range, look like numbers of classes."""
        if any(float(value) % 1 for value in labels):
            return
        low, high = int(min(map(float, labels))), int(max(map(float, labels)))
        raise DataError(
            f"{raw}: {self.reason} it seems to be {self.dataset}, whose labels are scores, but all "
            f"labels are whole numbers from {low} to {high}, as numbers of classes are; "
            f"if they are scores, say so: --dataset {self.dataset}, or --labels {low}:{high}:1; "
            "classes are read from a table with a column 'class' (docs/data.md)"
        )

    def describe(self, labels: Labels, is_stated: bool) -> str:
        """What was assumed, and what to write where it is wrong."""
        range_of_labels = f"{labels.low:g} to {labels.high:g}"
        about_labels = "" if is_stated else f", so labels are scores from {range_of_labels}"
        return (
            f"{self.reason} this is {self.dataset}{about_labels}; where that is wrong, say "
            "--dataset NAME or --labels LOW:HIGH[:STEP]"
        )


def assumed_dataset(raw: Path, widths: dict[str, int]) -> Assumed | None:
    """Which known data set this is, by its widths or else its file's name."""
    audio, vision = widths.get("audio", 0), widths.get("vision", 0)
    by_width = WIDTHS.get((audio, vision))
    if by_width:
        return Assumed(by_width, f"by the widths of sound and vision, {audio} and {vision},")
    longest_first = sorted(KNOWN_LABELS, key=len, reverse=True)  # "simsv2" before "sims"
    for name in longest_first:
        if name in raw.stem.lower():
            return Assumed(name, f"by its name {raw.name!r}")
    return None
