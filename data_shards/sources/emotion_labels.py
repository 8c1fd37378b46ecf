"""The emotions of MulT's ``iemocap_data.pkl``: four, each of which an utterance has or lacks.

The file is MMSA's layout but for its labels, (N, 4, 2): for each emotion two numbers, of which the
second is the larger where it is there. They become four targets of 0 and 1, to be learnt with
``classes=present`` and ``metrics=labels``. It has no ids: samples are called by split and number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from data_shards.shards.manifest import DataError, Field, Labels, Sample
from data_shards.shards.split_names import split_called
from data_shards.sources.raw_dataset import RawDataset, as_numbers

EMOTIONS = ("neutral", "happy", "sad", "angry")  # in the order of MulT's own evaluation
LABELS = Labels(low=0.0, high=1.0, resolution=1.0, names=EMOTIONS)
KEY = "labels"
SIDES = 2  # lacked, had


def has_emotions(loaded: Any) -> bool:
    """Whether every split of a pickle has such labels."""
    if not isinstance(loaded, dict):
        return False
    splits = [content for key, content in loaded.items() if split_called(key) is not None]
    return bool(splits) and all(_are_pairs(content) for content in splits)


def _are_pairs(content: Any) -> bool:
    labels = content.get(KEY) if isinstance(content, dict) else None
    return isinstance(labels, np.ndarray) and labels.ndim == 3 and labels.shape[2] == SIDES


def separate(loaded: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The file with ids and without its labels, which are 0 there; and of each split the labels,
    (N, 4) of 0 and 1.

    Raises:
        DataError: another number of emotions, or two equal numbers, which say nothing.
    """
    plain = dict(loaded)
    vectors = {}
    for key, content in loaded.items():
        split = split_called(key)
        if split is None:
            continue
        had = _had(content, f"{where}: {key}")
        ids = [f"{key}$_${number}" for number in range(len(had))]
        plain[key] = {"id": ids, **content, KEY: np.zeros(len(had), "<f4")}
        vectors[split] = had
    return plain, vectors


def _had(content: dict[str, Any], where: str) -> np.ndarray:
    """(N, 4) float32, 1 where the sample has the emotion."""
    pairs = as_numbers(content[KEY], "f8", f"{where}: {KEY}")  # (N, 4, 2)
    if pairs.shape[1] != len(EMOTIONS):
        raise DataError(
            f"{where}: {KEY!r} has shape {pairs.shape}; MulT's file has {len(EMOTIONS)} emotions "
            "with two numbers each"
        )
    lacked, had = pairs[..., 0], pairs[..., 1]
    undecided = np.argwhere(~np.isfinite(pairs).all(2) | (lacked == had))
    if len(undecided):
        sample, emotion = undecided[0]
        raise DataError(
            f"{where}, sample {sample}: {EMOTIONS[emotion]} is {pairs[sample, emotion].tolist()}, "
            "which says neither that it is there nor that it is not"
        )
    return (had > lacked).astype("<f4")


def put_together(dataset: RawDataset, vectors: dict[str, np.ndarray], name: str) -> RawDataset:
    """The data set as it was read without its labels, and these.

    Its widths are those of MOSEI's features, which it is not.
    """
    fields = {**dataset.fields, "label": Field("float32", (len(EMOTIONS),))}
    facts = {key: fact for key, fact in dataset.facts.items() if key != "assumed"}
    return replace(
        dataset,
        name=name,
        fields=fields,
        labels=LABELS,
        sample=partial(_labelled, dataset.sample, vectors),
        facts=facts | {"dataset": None, "labels": "emotions"},
    )


def _labelled(
    sample: Callable[[Any, Counter[str]], Sample],
    vectors: dict[str, np.ndarray],
    row: tuple[str, int],
    repairs: Counter[str],
) -> Sample:
    read = sample(row, repairs)
    split, number = row
    return replace(read, arrays={**read.arrays, "label": vectors[split][number]})
