"""One look at every sample of a tar that something else wrote: its checks, and what it measures.

What a conversion finds out while it writes (moments of train frames, labels, token ids) is found
out here while indexing, by the same functions, so that the same arrays train alike either way.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from core.command import Refused
from data_shards.shards.frame_moments import Moments, add_frames, mean_and_std
from data_shards.shards.index_table import ABSENT, JSON, JSON_SIZE, Index, columns, parse_json
from data_shards.shards.label_statistics import counted_classes, known_resolution, measured_scores
from data_shards.shards.manifest import DataError, Field, Labels
from data_shards.shards.sentiment_schema import (
    TEXT,
    Rules,
    are_token_ids,
    check_field,
    check_sample,
    field_of,
    is_label,
)


@dataclass
class Survey:
    """What was found in the samples of one tar."""

    fields: dict[str, Field] = field(default_factory=dict)
    labels: Counter[float] = field(default_factory=Counter)
    classes: Counter[int] = field(default_factory=Counter)
    largest_token: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)  # of train tars: of their frames
    max_length: dict[str, int] = field(default_factory=dict)
    problems: int = 0  # samples that cannot be used
    first_problem: str = ""


@dataclass
class Found:
    """What was found in all tars."""

    fields: dict[str, Field]
    scores: Counter[float]
    classes: Counter[int]
    largest_token: int
    moments: dict[str, tuple[list[float], list[float]]]
    max_length: dict[str, int]

    def labels(self, stated: Labels | None, where: str) -> Labels:
        """What labels mean: as stated, or measured."""
        kind = "classes" if self.classes else "regression"
        if stated is not None and stated.kind != kind:
            holds, option = ("classes", "--classes") if self.classes else ("scores", "--labels")
            raise DataError(f"{where} holds {holds}: state them with {option}, or leave it out")
        if self.classes:
            return stated or counted_classes(self.classes, where)
        return known_resolution(stated, self.scores) if stated else measured_scores(self.scores)

    def tokenizer(self, stated: dict[str, Any] | None, where: str) -> dict[str, Any] | None:
        """What is known of the tokenizer that made the token ids, if there are any."""
        text = self.fields.get(TEXT)
        if text is not None and are_token_ids(TEXT, text.dtype):
            return stated or {"name": "unknown", "vocab_size": self.largest_token + 1}
        if stated is not None:
            raise DataError(
                f"{where} holds no token ids (KEY.text.npy, integers), so --tokenizer has no "
                "effect; to make them of transcripts, convert a table with --tokenizer"
            )
        return None


def join_surveys(
    folder: Path, surveys: Sequence[tuple[Path, Survey]], not_arrays: Counter[str]
) -> Found:
    """What was found in all tars, in their order.

    Args:
        not_arrays: suffixes of files that are not read, for the message where labels lack.

    Raises:
        DataError: samples that cannot be used, or tars that do not go together.
    """
    _check_problems([survey for _, survey in surveys], not_arrays)
    found = Found({}, Counter(), Counter(), 0, {}, {})
    for path, survey in surveys:
        for name, described in survey.fields.items():
            check_like(name, described, found.fields.setdefault(name, described), str(path))
        found.scores.update(survey.labels)
        found.classes.update(survey.classes)
        found.largest_token = max(found.largest_token, survey.largest_token)
        for name, length in survey.max_length.items():
            found.max_length[name] = max(found.max_length.get(name, 0), length)
    if found.scores and found.classes:
        scored = next(path for path, survey in surveys if survey.labels)
        classed = next(path for path, survey in surveys if survey.classes)
        raise DataError(
            f"{folder}: some samples have a label, as in {scored.name}, and others a class, as in "
            f"{classed.name}; give one of them to all"
        )
    found.fields = dict(sorted(found.fields.items()))
    found.moments = mean_and_std(survey.moments for _, survey in surveys)
    return found


def _check_problems(surveys: Sequence[Survey], not_arrays: Counter[str]) -> None:
    problems = sum(survey.problems for survey in surveys)
    if not problems:
        return
    first = next(survey.first_problem for survey in surveys if survey.problems)
    more = f"; {problems} samples in all cannot be used" if problems > 1 else ""
    hint = ""
    if "neither a label" in first and not_arrays:
        hint = f" (files that are no arrays are not read: .{', .'.join(sorted(not_arrays))})"
    raise DataError(f"{first}{hint}{more}")


def survey_tar(path: Path, index: Index, split: str, rules: Rules) -> Survey:
    """Check and measure the samples of a tar; a sample that cannot be used is counted."""
    survey = Survey()
    for where, arrays in _samples(path, index):
        try:
            for name, array in arrays.items():
                _check_kind(survey.fields, name, array, where)
            check_sample(arrays, rules, where)
        except Refused as error:
            survey.problems += 1
            survey.first_problem = survey.first_problem or str(error)
            continue
        _measure(survey, arrays, in_train=split == "train")
    return survey


def _samples(path: Path, index: Index) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Where each sample stands, and its arrays as views of the file; DataError for a record that
    is no JSON object."""
    # freed with its last view, which an error may hold
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    offset_columns = columns(index.arrays)
    for key, numbers in zip(index.keys(), index.table.tolist(), strict=True):
        where = f"{path}, sample {key!r}"
        if numbers[JSON] != ABSENT:
            parse_json(content[numbers[JSON] : numbers[JSON] + numbers[JSON_SIZE]], where)
        arrays = {}
        for name, column in offset_columns.items():
            if numbers[column] == ABSENT:
                continue
            dtype, axes = index.arrays[name]
            shape = numbers[column + 1 : column + 1 + axes]
            arrays[name] = np.ndarray(shape, dtype, content, numbers[column])
        yield where, arrays


def _check_kind(known: dict[str, Field], name: str, array: np.ndarray, where: str) -> None:
    """DataError unless the array is of a kind that models take, and as wide as those before it."""
    if is_label(name) and array.shape:
        raise DataError(
            f"{where}: {name} has shape {array.shape}; one number per sample is learnt: write the "
            f"tars anew, or leave it out with --leave-out {quote(name)}"
        )
    found = field_of(name, array.dtype.name, array.shape)
    before = known.get(name)
    if before is None:
        check_field(name, found, where)
        known[name] = found
    else:
        check_like(name, found, before, where)


def check_like(name: str, found: Field, before: Field, where: str) -> None:
    """DataError unless a field is as it was before."""
    if found == before:
        return
    advice = f"write the tars anew, or leave it out with --leave-out {quote(name)}"
    is_wider = found.dtype == before.dtype and len(found.shape) == len(before.shape) == 2
    if is_wider and not are_token_ids(name, found.dtype):
        raise DataError(
            f"{where}: {name} has {found.shape[-1]} features, and samples before it have "
            f"{before.shape[-1]}; {advice}"
        )
    raise DataError(
        f"{where}: {name} is {found.dtype} of shape {found.shape}, and in samples before it "
        f"{before.dtype} of shape {before.shape}; {advice}"
    )


def _measure(survey: Survey, arrays: dict[str, np.ndarray], in_train: bool) -> None:
    for name, array in arrays.items():
        if name == "label":
            survey.labels[float(str(array[()]))] += 1  # 0.2 also where it is float32
        elif name == "class":
            survey.classes[int(array)] += 1
        elif not is_label(name):
            _measure_frames(survey, name, array, in_train)


def _measure_frames(survey: Survey, name: str, array: np.ndarray, in_train: bool) -> None:
    is_text = are_token_ids(name, array.dtype.name)
    length = array.shape[-1] if is_text else len(array)
    survey.max_length[name] = max(survey.max_length.get(name, 0), length)
    if is_text:
        ids = array if array.ndim == 1 else array[0]
        survey.largest_token = max(survey.largest_token, int(ids.max()))
    elif in_train:
        # as a table would have stored them
        add_frames(survey.moments, name, array.astype(np.float32, copy=False))
