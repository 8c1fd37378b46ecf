"""Index WebDataset tars that something else wrote: ``python -m data_shards.index DIR``.

Every tar of the folder gets an index beside it, and the folder a manifest; the tars are not touched. A member
``<key>.<field>.npy`` is the array ``field``, ``<key>.json`` and ``<key>.txt`` are the sample's record and transcript,
any other member is the bytes of its file as uint8. In a folder that has a manifest, missing and damaged indexes are
made again, and must come out as the manifest knows them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.arguments import command_parser, parse
from core.command import run
from data_shards.shards.index_table import ABSENT, MAX_AXES, Index, summary
from data_shards.shards.manifest import (
    MANIFEST,
    NUMBERS,
    DataError,
    Field,
    Manifest,
    Shard,
    read_manifest,
)
from data_shards.shards.tar import Member, members
from data_shards.shards.writer import index_name, sha256_of, staged

_NPY_HEADER = 1 << 16  # bytes; a longer header is hostile


def index_tar(path: Path, leave_out: Sequence[str] = ()) -> tuple[Index, int]:
    """The index of a tar, and how many of its members belong to no sample because they have no suffix.

    Raises:
        DataError: anything that a reader of the whole tar would stumble over; it names the member and its offset.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DataError(f"{path} is empty; fetch or write the file again")
        held = mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ
        )  # freed with its last view, an error's too
    builder = _Builder(str(path), held, frozenset(leave_out))
    for member in members(held, str(path)):
        builder.add(member)
    return builder.finish(), builder.without_suffix


def _with_checksum(path: Path, leave_out: Sequence[str]) -> tuple[Index, int, str]:
    with path.open("rb") as file:
        return *index_tar(path, leave_out), sha256_of(file)


class _Builder:
    """Members of one tar, gathered into samples."""

    def __init__(self, where: str, held: mmap.mmap, leave_out: frozenset[str]):
        self.where, self.held, self.leave_out = where, held, leave_out
        self.keys: dict[str, None] = {}
        self.key: str | None = None  # of the sample under way
        self.arrays: dict[str, tuple[str, int]] = {}
        self.fixed: list[list[int]] = []  # start, end, crc32, json, json_size, text, text_size
        self.places: list[dict[str, tuple[int, ...]]] = []
        self.without_suffix = 0

    def add(self, member: Member) -> None:
        at = f"{self.where}, byte {member.start}, member {member.name!r}"
        folder, slash, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not dot or not stem:
            self.without_suffix += 1
            return
        key, suffix = folder + slash + stem, suffix.lower()
        if key != self.key:
            if key in self.keys:
                raise DataError(
                    f"{at}: sample {key!r} appeared before; the members of a sample must lie together, and keys be "
                    f"unique: write the tar anew, sorted by name"
                )
            self._close()
            self.key = key
            self.keys[key] = None
            self.fixed.append([member.start, 0, 0, ABSENT, ABSENT, ABSENT, ABSENT])
            self.places.append({})
        self.fixed[-1][1] = member.end
        if suffix in ("json", "txt"):
            column = 3 if suffix == "json" else 5
            if self.fixed[-1][column] != ABSENT:
                raise DataError(f"{at}: the sample has a .{suffix} already")
            self.fixed[-1][column : column + 2] = [member.offset, member.size]
            return
        field = suffix if not suffix.endswith("npy") else suffix[:-3].rstrip(".") or "npy"
        if field in self.leave_out:
            return
        if field in self.places[-1]:
            raise DataError(f"{at}: the sample has a field {field!r} already")
        if suffix == "npy" or suffix.endswith(".npy"):
            offset, dtype, shape = _npy(self.held, member, at)
        else:
            field, offset, dtype, shape = suffix, member.offset, "uint8", (member.size,)
        kind = (dtype, len(shape))
        if self.arrays.setdefault(field, kind) != kind:
            raise DataError(
                f"{at}: {kind[0]} with {kind[1]} axes, but {self.arrays[field][0]} with {self.arrays[field][1]} axes "
                f"before; convert the data with python -m data_shards.convert, or leave it out with --leave-out {field}"
            )
        self.places[-1][field] = (offset, *shape)

    def finish(self) -> Index:
        self._close()
        if not self.fixed:
            raise DataError(
                f"{self.where} holds no samples (members named KEY.SUFFIX); remove it from the folder"
            )
        return Index.build(self.arrays, list(self.keys), self.fixed, self.places, len(self.held))

    def _close(self) -> None:
        if self.key is not None:
            start, end = self.fixed[-1][:2]
            self.fixed[-1][2] = zlib.crc32(memoryview(self.held)[start:end])


def _npy(held: mmap.mmap, member: Member, at: str) -> tuple[int, str, tuple[int, ...]]:
    """Offset of the numbers, dtype and shape of a ``.npy`` member."""
    start = held[member.offset : member.offset + min(member.size, 12)]
    longer = int.from_bytes(start[8:10] if start[6:7] == b"\1" else start[8:12], "little")
    head = held[member.offset : member.offset + min(member.size, 12 + longer, _NPY_HEADER)]
    try:
        shape, fortran, dtype, used = _npy_header(head)
    except Exception as error:  # whatever the parser of a header meets in garbage
        raise DataError(f"{at}: not a readable .npy: {type(error).__name__}: {error}") from error
    if dtype.newbyteorder("<") != dtype or (name := _name(dtype)) not in NUMBERS:
        raise DataError(f"{at}: dtype {dtype}; only little-endian numbers are read, never objects")
    if fortran and sum(extent > 1 for extent in shape) > 1:
        raise DataError(f"{at}: stored in Fortran order; write it anew with np.ascontiguousarray")
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    if len(shape) > MAX_AXES or any(extent < 0 for extent in shape) or size != member.size - used:
        raise DataError(
            f"{at}: shape {shape} of {dtype} does not fit a member of {member.size} bytes"
        )
    return member.offset + used, name, shape


def _npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, dtype, and the length of the header that ``head`` starts with, or is."""
    version = np.lib.format.read_magic(BytesIO(head))
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version}")
    used = (
        10 + int.from_bytes(head[8:10], "little")
        if version == (1, 0)
        else 12 + int.from_bytes(head[8:12], "little")
    )
    return (*_parsed(version, head[8:used]), used)


@lru_cache(maxsize=64)
def _name(dtype: np.dtype) -> str:
    return dtype.name


@lru_cache(maxsize=4096)
def _parsed(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(BytesIO(header))
    return tuple(int(extent) for extent in shape), fortran, dtype


def index_folder(
    folder: Path,
    *,
    split: str | None = None,
    task: str = "sentiment",
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
    found: dict[str, tuple[str, list[tuple[int, int]]]] = {}
    lost, seen = 0, Counter[str]()
    with ProcessPoolExecutor(processes) if processes > 1 else nullcontext() as pool:
        work = partial(_with_checksum, leave_out=leave_out)
        results = pool.map(work, tars) if pool else map(work, tars)
        for path, (index, without_suffix, sha256) in zip(
            tars, tqdm(results, total=len(tars), disable=None), strict=True
        ):
            body = index.to_bytes()
            with staged(folder / index_name(path.name)) as file:
                file.write(body)
            shard = Shard(
                path.name, len(index), index.tar_bytes, sha256, hashlib.sha256(body).hexdigest()
            )
            splits.setdefault(split or _split(path), []).append(shard)
            _merge(found, index, path)
            lost += without_suffix
            seen.update(index.keys())
    if lost:
        print(
            f"left out: {lost} members without a suffix, which belong to no sample", file=sys.stderr
        )
    if repeated := len(seen) - seen.total():
        print(
            f"note: {-repeated} keys appear in more than one tar; ids are not unique",
            file=sys.stderr,
        )
    manifest = Manifest(
        name=folder.resolve().name,
        task=task,
        fields={
            field: Field(dtype, _shape(field, dtype, extents))
            for field, (dtype, extents) in sorted(found.items())
        },
        splits={name: tuple(shards) for name, shards in splits.items()},
        source={
            "indexed": "foreign WebDataset tars",
            "members without suffix": lost,
            "left out": sorted(leave_out),
        },
        max_length={
            field: extents[axis][1]
            for field, (dtype, extents) in found.items()
            if (axis := _time(dtype, extents)) is not None
        },
    )
    text = manifest.to_json()
    Manifest.from_json(text, str(folder / MANIFEST))
    with staged(folder / MANIFEST) as file:
        file.write(text.encode("utf-8"))
    return manifest


def restore_indexes(folder: Path) -> list[str]:
    """Make missing and damaged indexes of a folder with a manifest again; gives their names."""
    made, manifest = [], read_manifest(folder)
    for shard in (shard for shards in manifest.splits.values() for shard in shards):
        path = folder / index_name(shard.name)
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == shard.index_sha256:
            continue
        index, _, sha256 = _with_checksum(folder / shard.name, left_out(manifest))
        body = index.to_bytes()
        if sha256 != shard.sha256 or hashlib.sha256(body).hexdigest() != shard.index_sha256:
            what = "tar" if sha256 != shard.sha256 else "index, made anew,"
            raise DataError(
                f"{folder / shard.name}: the {what} is not the one that {MANIFEST} knows; restore the file or convert "
                f"again. To accept the tars of the folder as they are, remove {MANIFEST} and run this again"
            )
        with staged(path) as file:
            file.write(body)
        made.append(path.name)
    return made


def left_out(manifest: Manifest) -> tuple[str, ...]:
    """Fields of the tars that were not indexed on purpose."""
    return tuple(str(name) for name in manifest.source.get("left out", ()))


def _split(path: Path) -> str:
    return re.sub(r"[-_.]?\d+$", "", path.stem) or "train"


def _merge(found: dict[str, tuple[str, list[tuple[int, int]]]], index: Index, path: Path) -> None:
    """Widen the extents of each field by those of one more tar."""
    for field, (dtype, extents) in summary(index).items():
        known, before = found.setdefault(
            field, (dtype, [(int(low), int(high)) for low, high in extents])
        )
        if known != dtype or len(before) != len(extents):
            raise DataError(
                f"{path}: field {field!r} is {dtype} with {len(extents)} axes, but {known} with {len(before)} axes in "
                f"the tars before; leave it out with --leave-out {field}"
            )
        before[:] = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(before, extents, strict=True)]


def _time(dtype: str, extents: Sequence[tuple[int, int]]) -> int | None:
    """The axis that is padded: the one that varies. Where none does: the first of features, the last of integers."""
    free = [axis for axis, (low, high) in enumerate(extents) if low != high]
    if free:
        return free[0]
    if len(extents) < 2:
        return 0 if extents and dtype == "uint8" else None
    return 0 if np.dtype(dtype).kind == "f" else len(extents) - 1


def _shape(field: str, dtype: str, extents: Sequence[tuple[int, int]]) -> tuple[int | None, ...]:
    if sum(low != high for low, high in extents) > 1:
        raise DataError(
            f"field {field!r} varies along more than one axis ({list(extents)}); leave it out with --leave-out {field}"
        )
    time = _time(dtype, extents)
    return tuple(None if axis == time else low for axis, (low, _) in enumerate(extents))


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("index", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--split", help="the split that all tars belong to (default: the start of each name)"
    )
    parser.add_argument("--task", choices=["sentiment", "alignment"], default="sentiment")
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="FIELD", help="do not index this field"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = parse(parser, argv)

    def work() -> None:
        folder: Path = given.folder
        if (folder / MANIFEST).exists():
            made = restore_indexes(folder)
            print(
                f"{folder} has a manifest; "
                + (f"made again: {', '.join(made)}" if made else "all indexes are whole")
            )
            return
        manifest = index_folder(
            folder,
            split=given.split,
            task=given.task,
            leave_out=given.leave_out,
            processes=given.processes,
        )
        counts = ", ".join(f"{manifest.samples(name)} {name}" for name in manifest.splits)
        print(f"indexed {counts} samples with fields {', '.join(manifest.fields)}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
