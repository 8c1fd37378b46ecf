"""Which known data set an MMSA file is, where nobody says: a guess, which is said aloud and can be overruled.

The guess decides what range the labels have and whose token ids these are, so it must never turn
other data into scores of a data set that they only look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.shards.manifest import DataError, Labels
from data_shards.sources.raw_dataset import KNOWN_LABELS, KnownDataset

# Widths of sound and vision tell the published feature sets apart.
WIDTHS: dict[tuple[int, int], KnownDataset] = {
    (5, 20): "mosi",
    (74, 35): "mosei",
    (33, 709): "sims",
    (25, 177): "simsv2",
}


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
