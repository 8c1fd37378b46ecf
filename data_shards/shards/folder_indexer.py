"""Indexes and a manifest for a folder of tars that something else wrote; and lost indexes made
again.

The tars are not touched. In a folder that has a manifest, an index that is made again must come out
as the manifest knows it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from core.files import sha256_of_bytes, sha256_of_file, write_atomically
from data_shards.shards.index_table import Index, summary
from data_shards.shards.manifest import (
    MANIFEST,
    DataError,
    Field,
    Manifest,
    Shard,
    read_manifest,
)
from data_shards.shards.tar_indexer import index_tar
from data_shards.shards.writer import index_name

Extents = list[tuple[int, int]]  # smallest and largest extent of each axis


def index_folder(
    folder: Path,
    *,
    split: str | None = None,
    task: Literal["sentiment", "alignment"] = "sentiment",
    leave_out: Sequence[str] = (),
    processes: int = 1,
) -> Manifest:
    """Index all tars of ``folder`` and write its manifest.

    Args:
        split: of all tars; by default the start of each name, ``train`` for ``train-000012.tar``.
        leave_out: fields that are not indexed.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise DataError(f"{folder} holds no .tar files")
    splits: dict[str, list[Shard]] = {}
    fields: dict[str, tuple[str, Extents]] = {}
    without_suffix = 0
    keys: Counter[str] = Counter()
    results = tqdm(_index_all(tars, leave_out, processes), total=len(tars), disable=None)
    for path, (index, ignored, sha256) in zip(tars, results, strict=True):
        body = index.to_bytes()
        write_atomically(folder / index_name(path.name), body)
        shard = Shard(path.name, len(index), index.tar_bytes, sha256, sha256_of_bytes(body))
        splits.setdefault(split or _split_of(path), []).append(shard)
        _widen(fields, index, path)
        without_suffix += ignored
        keys.update(index.keys())
    _warn(without_suffix, repeated_keys=keys.total() - len(keys))
    max_length = {}
    for name, (dtype, extents) in fields.items():
        axis = _time_axis(dtype, extents)
        if axis is not None:
            max_length[name] = extents[axis][1]
    manifest = Manifest(
        name=folder.resolve().name,
        task=task,
        fields={
            name: Field(dtype, _shape(name, dtype, extents))
            for name, (dtype, extents) in sorted(fields.items())
        },
        splits={name: tuple(shards) for name, shards in splits.items()},
        source={
            "indexed": "foreign WebDataset tars",
            "members without suffix": without_suffix,
            "left out": sorted(leave_out),
        },
        max_length=max_length,
    )
    text = manifest.to_json()
    Manifest.from_json(text, str(folder / MANIFEST))  # refuses what could not be read again
    write_atomically(folder / MANIFEST, text)
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
    index, _, sha256 = _index_with_checksum(path, left_out(manifest))
    body = index.to_bytes()
    if sha256 != shard.sha256:
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


def _index_all(
    tars: Sequence[Path], leave_out: Sequence[str], processes: int
) -> Iterator[tuple[Index, int, str]]:
    """Of each tar in order: its index, how many members belong to no sample, and its SHA-256."""
    work = partial(_index_with_checksum, leave_out=leave_out)
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(work, tars)
    else:
        yield from map(work, tars)


def _index_with_checksum(path: Path, leave_out: Sequence[str]) -> tuple[Index, int, str]:
    index, without_suffix = index_tar(path, leave_out)
    return index, without_suffix, sha256_of_file(path)


def _warn(without_suffix: int, repeated_keys: int) -> None:
    if without_suffix:
        message = f"left out: {without_suffix} members without a suffix, which belong to no sample"
        print(message, file=sys.stderr)
    if repeated_keys:
        message = f"note: {repeated_keys} keys appear in more than one tar; ids are not unique"
        print(message, file=sys.stderr)


def _split_of(path: Path) -> str:
    return re.sub(r"[-_.]?\d+$", "", path.stem) or "train"


def _widen(fields: dict[str, tuple[str, Extents]], index: Index, path: Path) -> None:
    """Widen the extents of each field by those of one more tar."""
    for name, (dtype, extents) in summary(index).items():
        found = [(int(low), int(high)) for low, high in extents]
        before_dtype, before = fields.setdefault(name, (dtype, found))
        if before_dtype != dtype or len(before) != len(found):
            raise DataError(
                f"{path}: field {name!r} is {dtype} with {len(found)} axes, but {before_dtype} "
                f"with {len(before)} axes "
                f"in the tars before; leave it out with --leave-out {name}"
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


def _shape(name: str, dtype: str, extents: Extents) -> tuple[int | None, ...]:
    if sum(low != high for low, high in extents) > 1:
        raise DataError(
            f"field {name!r} varies along more than one axis ({extents}); leave it out with "
            f"--leave-out {name}"
        )
    time = _time_axis(dtype, extents)
    return tuple(None if axis == time else low for axis, (low, _) in enumerate(extents))
