"""Indexes and a manifest for a folder of tars that something else wrote; and lost indexes made
again.

The tars are not touched. In a folder that has a manifest, an index that is made again must come out
as the manifest knows it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from tqdm import tqdm

from core.files import sha256_of_bytes, sha256_of_file, write_atomically
from data_shards.indexing.tar_indexer import index_tar
from data_shards.indexing.tar_survey import Survey, join_surveys, survey_tar
from data_shards.shards.index_table import Index, summary
from data_shards.shards.manifest import (
    MANIFEST,
    DataError,
    Field,
    Labels,
    Manifest,
    Shard,
    Task,
    check_manifest_text,
    is_plain_name,
    read_manifest,
    write_manifest,
)
from data_shards.shards.sentiment_schema import Rules, check_manifest
from data_shards.shards.split_names import (
    check_needed,
    check_parts,
    in_order,
    split_at_start,
    split_in_name,
    tars_by_split,
)
from data_shards.shards.writer import index_name

Extents = list[tuple[int, int]]  # smallest and largest extent of each axis


@dataclass(frozen=True)
class Stated:
    """What the user says of the tars."""

    task: Task = "sentiment"
    splits: Sequence[str] = ()  # "PATTERN=SPLIT", or "SPLIT" for all other tars
    leave_out: Sequence[str] = ()  # fields that are not indexed
    labels: Labels | None = None  # None: measured
    tokenizer: dict[str, Any] | None = None  # of the token ids; None: the largest id is counted
    source: dict[str, Any] = field(default_factory=dict)  # more facts for Manifest.source


@dataclass(frozen=True)
class TarFacts:
    """What is known of a tar once its index is written."""

    path: Path
    split: str
    shard: Shard
    keys: list[str]
    extents: dict[str, tuple[str, Extents]]  # field -> dtype, extents of its axes
    without_suffix: int  # members that belong to no sample
    not_arrays: Counter[str]  # suffix of files that are no arrays -> how many are left out
    survey: Survey | None  # of sentiment data


def index_folder(folder: Path, stated: Stated | None = None, *, processes: int = 1) -> Manifest:
    """Index all tars of ``folder`` and write its manifest.

    Raises:
        DataError: a tar that cannot be read; of sentiment data also a sample that would be learnt
            wrongly, and splits that training needs and that are not there.
    """
    stated = stated or Stated()
    is_sentiment = stated.task == "sentiment"
    tars = in_order(folder.glob("*.tar"))
    if not tars:
        raise DataError(f"{folder} holds no .tar files{_hint_of_subfolders(folder)}")
    check_parts(tars)
    by_name = split_in_name if is_sentiment else split_at_start
    splits = tars_by_split(tars, stated.splits, by_name)
    if is_sentiment:
        check_needed(splits, folder)
    work = [(path, split) for split, paths in splits.items() for path in paths]
    indexed = _index_all(work, stated, processes)
    facts = list(tqdm(indexed, total=len(work), disable=None))
    _check_keys(facts, stated.task)
    shards: dict[str, Sequence[Shard]] = {
        split: tuple(tar.shard for tar in facts if tar.split == split) for split in splits
    }
    source = {
        "indexed": "foreign WebDataset tars",
        "members without suffix": sum(tar.without_suffix for tar in facts),
        "left out": sorted(stated.leave_out),
        "no arrays": dict(sorted(_not_arrays(facts).items())),
        **stated.source,
    }
    described = _sentiment(folder, facts, stated) if is_sentiment else _arrays(folder, facts)
    manifest = Manifest(
        name=folder.resolve().name, task=stated.task, splits=shards, source=source, **described
    )
    text = manifest.to_json()
    check_manifest_text(manifest, text, str(folder / MANIFEST))
    if is_sentiment:
        check_manifest(manifest, str(folder))
    write_manifest(folder, manifest, text)
    return manifest


def restore_indexes(folder: Path) -> list[str]:
    """Make missing and damaged indexes of a folder with a manifest again; gives their names."""
    restored = []
    manifest = read_manifest(folder)
    for shards in manifest.splits.values():
        for shard in shards:
            path = folder / index_name(shard.name)
            if path.is_file() and sha256_of_file(path) == shard.index_sha256:
                continue
            write_atomically(path, _index_again(folder, manifest, shard))
            restored.append(path.name)
    return restored


def _index_again(folder: Path, manifest: Manifest, shard: Shard) -> bytes:
    """The index of a shard; DataError unless tar and index are those that the manifest knows."""
    path = folder / shard.name
    tar = index_tar(path, left_out(manifest), manifest.task, media_fields(manifest))
    body = tar.index.to_bytes()
    if sha256_of_file(path) != shard.sha256:
        wrong = "tar"
    elif sha256_of_bytes(body) != shard.index_sha256:
        wrong = "index, made anew,"
    else:
        return body
    raise DataError(
        f"{path}: the {wrong} is not the one that {MANIFEST} knows; restore the file or convert "
        f"again. To accept the tars of the folder as they are, remove {MANIFEST} and run this again"
    )


def left_out(manifest: Manifest) -> tuple[str, ...]:
    """Fields of the tars that were not indexed on purpose."""
    return tuple(str(name) for name in manifest.source.get("left out", ()))


def media_fields(manifest: Manifest) -> tuple[str, ...]:
    """Fields whose members are files of sound or pictures."""
    return tuple(name for name, described in manifest.fields.items() if described.media)


def _index_all(
    work: Sequence[tuple[Path, str]], stated: Stated, processes: int
) -> Iterator[TarFacts]:
    """The facts of each tar in order."""
    index_one = partial(_index_one, stated=stated)
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(index_one, work)
    else:
        yield from map(index_one, work)


def _index_one(item: tuple[Path, str], stated: Stated) -> TarFacts:
    """Write the index of a tar."""
    path, split = item
    tar = index_tar(path, stated.leave_out, stated.task)
    index = tar.index
    survey = None
    if stated.task == "sentiment":
        survey = survey_tar(path, index, split, Rules.of(stated.labels, stated.tokenizer))
    body = index.to_bytes()
    write_atomically(path.with_name(index_name(path.name)), body)
    tar_sha256, index_sha256 = sha256_of_file(path), sha256_of_bytes(body)
    return TarFacts(
        path=path,
        split=split,
        shard=Shard(path.name, len(index), index.tar_bytes, tar_sha256, index_sha256),
        keys=index.keys(),
        extents=_extents(index),
        without_suffix=tar.without_suffix,
        not_arrays=tar.not_arrays,
        survey=survey,
    )


def _sentiment(folder: Path, facts: Sequence[TarFacts], stated: Stated) -> dict[str, Any]:
    """What the manifest says of the samples of sentiment data."""
    surveys = [(tar.path, tar.survey) for tar in facts if tar.survey is not None]
    found = join_surveys(folder, surveys, _not_arrays(facts))
    return {
        "fields": found.fields,
        "labels": found.labels(stated.labels, str(folder)),
        "tokenizer": found.tokenizer(stated.tokenizer, str(folder)),
        "moments": found.moments,
        "max_length": found.max_length,
    }


def _arrays(folder: Path, facts: Sequence[TarFacts]) -> dict[str, Any]:
    """What the manifest says of arrays of any kind."""
    fields: dict[str, tuple[str, Extents]] = {}
    for tar in facts:
        _widen(fields, tar)
    described = {}
    max_length = {}
    for name, (dtype, extents) in sorted(fields.items()):
        described[name] = Field(dtype, _shape(str(folder), name, dtype, extents))
        axis = _time_axis(dtype, extents)
        if axis is not None:
            max_length[name] = extents[axis][1]
    return {"fields": described, "max_length": max_length}


def _not_arrays(facts: Sequence[TarFacts]) -> Counter[str]:
    total: Counter[str] = Counter()
    for tar in facts:
        total.update(tar.not_arrays)
    return total


def _check_keys(facts: Sequence[TarFacts], task: Task) -> None:
    """Of sentiment data, keys must be unique: scores and predictions go by them."""
    first: dict[str, Path] = {}
    repeated = 0
    for tar in facts:
        for key in tar.keys:
            before = first.setdefault(key, tar.path)
            if before is tar.path:
                continue
            if task == "sentiment":
                raise DataError(
                    f"{tar.path}, sample {key!r}: this key is in {before.name} already; keys must "
                    "be unique in the folder: write the tars anew, with the split in front of each"
                )
            repeated += 1
    if repeated:
        print(f"note: {repeated} keys appear in more than one tar", file=sys.stderr)


def _hint_of_subfolders(folder: Path) -> str:
    below = next(folder.glob("*/*.tar"), None)
    if below is None:
        return ""
    name = f"{below.parent.name}-{below.name}"
    return f"; those in folders below are not read: move {below} to {folder / name}, and so on"


def _extents(index: Index) -> dict[str, tuple[str, Extents]]:
    described = {}
    for name, (dtype, extents) in summary(index).items():
        described[name] = (dtype, [(int(low), int(high)) for low, high in extents])
    return described


def _widen(fields: dict[str, tuple[str, Extents]], tar: TarFacts) -> None:
    """Widen the extents of each field by those of one more tar."""
    for name, (dtype, found) in tar.extents.items():
        if not is_plain_name(name):
            raise DataError(
                f"{tar.path}: {name!r} cannot be the name of a field (letters, digits, _ and -, dots "
                f"between); write the tars anew, or leave it out with --leave-out {quote(name)}"
            )
        before_dtype, before = fields.setdefault(name, (dtype, list(found)))
        if before_dtype != dtype or len(before) != len(found):
            raise DataError(
                f"{tar.path}: field {name!r} is {dtype} with {len(found)} axes, but {before_dtype} "
                f"with {len(before)} axes in the tars before; leave it out with --leave-out {quote(name)}"
            )
        for axis, (low, high) in enumerate(found):
            lowest, highest = before[axis]
            before[axis] = (min(lowest, low), max(highest, high))


def _time_axis(dtype: str, extents: Extents) -> int | None:
    """The axis that is padded: the one that varies. Where none does: the first of features, the
    last of integers."""
    for axis, (low, high) in enumerate(extents):
        if low != high:
            return axis
    if len(extents) < 2:
        return 0 if extents and dtype == "uint8" else None
    return 0 if np.dtype(dtype).kind == "f" else len(extents) - 1


def _shape(where: str, name: str, dtype: str, extents: Extents) -> tuple[int | None, ...]:
    if sum(low != high for low, high in extents) > 1:
        raise DataError(
            f"{where}: field {name!r} varies along more than one axis ({extents}); leave it out with "
            f"--leave-out {quote(name)}"
        )
    time = _time_axis(dtype, extents)
    return tuple(None if axis == time else low for axis, (low, _) in enumerate(extents))
