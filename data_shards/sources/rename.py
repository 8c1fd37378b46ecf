"""``convert --rename face=vision``: a modality of the raw data under another name in the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from core.names import suggest
from data_shards.shards.manifest import DataError, Sample
from data_shards.shards.sentiment_schema import MODALITY, VIEW
from data_shards.sources.raw_dataset import RawDataset

MakeSample = Callable[[Any, Counter[str]], Sample]


def parse_renaming(words: Iterable[str]) -> dict[str, str]:
    """``["face=vision"]`` as ``{"face": "vision"}``."""
    names: dict[str, str] = {}
    for word in words:
        old, equals, new = word.partition("=")
        if not (old and equals and new):
            raise DataError(f"--rename {word!r}: expected OLD=NEW, such as face=vision")
        if old in names:
            raise DataError(f"--rename {word}: {old!r} is renamed to {names[old]!r} already")
        if not MODALITY.fullmatch(new):
            raise DataError(f"--rename {word}: {new!r} cannot be the name of a modality")
        names[old] = new
    return names


def rename(dataset: RawDataset, names: Mapping[str, str]) -> RawDataset:
    """The data set with its modalities, and their human labels, under the new names.

    Raises:
        DataError: there is no such modality, or two would have one name.
    """
    modalities = [name for name, field in dataset.fields.items() if None in field.shape]
    for old in names:
        if old not in modalities:
            raise DataError(
                f"--rename {old}={names[old]}: the data has no modality {old!r}, only "
                f"{', '.join(modalities)}{suggest(old, modalities)}"
            )
    new_names = {}
    for field in dataset.fields:
        prefix = VIEW if field.startswith(VIEW) else ""
        old = field.removeprefix(prefix)
        new_names[field] = prefix + names.get(old, old)
    for new, count in Counter(new_names.values()).items():
        if count > 1:
            both = " and ".join(old for old, name in new_names.items() if name == new)
            raise DataError(f"--rename: {both} would both be called {new!r}; rename the other too")
    fields = {new_names[name]: field for name, field in dataset.fields.items()}
    sample = partial(_renamed_sample, dataset.sample, new_names)
    extraction = dataset.extraction.renamed(names) if dataset.extraction else None
    return replace(dataset, fields=fields, sample=sample, extraction=extraction)


def _renamed_sample(
    make: MakeSample, names: Mapping[str, str], row: Any, repairs: Counter[str]
) -> Sample:
    sample = make(row, repairs)
    arrays = {names[name]: array for name, array in sample.arrays.items()}
    media = {names[name]: member for name, member in sample.media.items()}
    return replace(sample, arrays=arrays, media=media)
