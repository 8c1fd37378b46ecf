"""The index of any WebDataset tar, made by walking through its members.

A member ``<key>.<field>.npy`` is the array ``field``, ``<key>.json`` and ``<key>.txt`` are the
sample's record and transcript. Any other member is the bytes of its file as uint8, or left out
where samples are to be learnt from: no model reads bytes.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np

from core.file_access.regular_files import open_regular_file
from data_shards.media.media_kinds import SUFFIXES
from data_shards.shards.index_table import ABSENT, Index
from data_shards.shards.manifest import MAX_AXES, NUMBERS, DataError, Task
from data_shards.shards.sentiment_schema import shape_as_read
from data_shards.shards.tar import Member, members

_NPY_HEADER = 1 << 16  # bytes; a longer header is hostile


@dataclass(frozen=True)
class IndexedTar:
    """The index of a tar, and which of its members are not in it."""

    index: Index
    without_suffix: int  # members that belong to no sample
    not_arrays: Counter[str]  # suffix of other files -> how many there are


def index_tar(
    path: Path,
    leave_out: Sequence[str] = (),
    task: Task = "arrays",
    media: Collection[str] = (),
) -> IndexedTar:
    """The index of a tar.

    Args:
        leave_out: fields that are not indexed.
        task: of sentiment data, only arrays are indexed, in the shape in which they are read
            (``shape_as_read``).
        media: fields whose members are files of sound or pictures, such as ``<key>.audio.flac``.

    Raises:
        DataError: anything that a reader of the whole tar would stumble over; it names the member
    and its offset.
    """
    with open_regular_file(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DataError(f"{path} is empty; fetch or write the file again")
        # Freed with its last view, which an error may hold.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    indexer = _TarIndexer(str(path), content, frozenset(leave_out), task, frozenset(media))
    for member in members(content, str(path)):
        indexer.add(member)
    return IndexedTar(indexer.finish(), indexer.without_suffix, indexer.not_arrays)


@dataclass
class _Sample:
    """Where one sample lies in the tar."""

    key: str
    start: int
    end: int = 0
    crc32: int = 0
    json: tuple[int, int] = (ABSENT, ABSENT)  # offset, size
    text: tuple[int, int] = (ABSENT, ABSENT)
    arrays: dict[str, tuple[int, ...]] = field(default_factory=dict)  # field -> offset, *shape

    def fixed_columns(self) -> list[int]:
        """The first columns of its line in the index, ``index_table.FIXED``."""
        return [self.start, self.end, self.crc32, *self.json, *self.text]


class _Array(NamedTuple):
    """An array stored in a tar."""

    offset: int
    dtype: str
    shape: tuple[int, ...]


class _TarIndexer:
    """Members of one tar, gathered into samples."""

    def __init__(
        self,
        where: str,
        content: mmap.mmap,
        leave_out: frozenset[str],
        task: Task,
        media: frozenset[str],
    ):
        self.where = where
        self.content = content
        self.leave_out = leave_out
        self.is_sentiment = task == "sentiment"
        self.media = media
        self.samples: dict[str, _Sample] = {}
        self.current: _Sample | None = None  # the sample whose members are being read
        self.fields: dict[str, tuple[str, int]] = {}  # field -> dtype, number of axes
        self.without_suffix = 0
        self.not_arrays: Counter[str] = Counter()

    def add(self, member: Member) -> None:
        where = f"{self.where}, byte {member.start}, member {member.name!r}"
        folder, slash, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not dot or not stem:
            self.without_suffix += 1
            return
        sample = self._sample(folder + slash + stem, member, where)
        sample.end = member.end
        suffix = suffix.lower()
        if suffix == "json":
            if sample.json[0] != ABSENT:
                raise DataError(f"{where}: the sample has a .json already")
            sample.json = (member.offset, member.size)
        elif suffix == "txt":
            if sample.text[0] != ABSENT:
                raise DataError(f"{where}: the sample has a .txt already")
            sample.text = (member.offset, member.size)
        else:
            self._add_array(sample, suffix, member, where)

    def finish(self) -> Index:
        self._finish_sample()
        if not self.samples:
            raise DataError(
                f"{self.where} holds no samples (members named KEY.SUFFIX); remove it from the "
                "folder"
            )
        samples = self.samples.values()
        return Index.build(
            self.fields,
            list(self.samples),
            [sample.fixed_columns() for sample in samples],
            [sample.arrays for sample in samples],
            len(self.content),
        )

    def _sample(self, key: str, member: Member, where: str) -> _Sample:
        """The sample with this key, which the member continues or begins."""
        if self.current is not None and key == self.current.key:
            return self.current
        if key in self.samples:
            raise DataError(
                f"{where}: sample {key!r} appeared before; the members of a sample must lie "
                "together, and keys be "
                f"unique: write the tar anew, sorted by name"
            )
        self._finish_sample()
        self.current = self.samples[key] = _Sample(key, member.start)
        return self.current

    def _finish_sample(self) -> None:
        sample = self.current
        if sample is not None:
            sample.crc32 = zlib.crc32(memoryview(self.content)[sample.start : sample.end])

    def _add_array(self, sample: _Sample, suffix: str, member: Member, where: str) -> None:
        before_dot, _, kind_of_file = suffix.rpartition(".")
        is_media = before_dot in self.media and kind_of_file in SUFFIXES
        name = before_dot if is_media else _field_name(suffix)
        if name in self.leave_out:
            return
        if name in sample.arrays:
            raise DataError(f"{where}: the sample has a field {name!r} already")
        if is_media:
            array = _Array(member.offset, "uint8", (member.size,))
        elif suffix == "npy" or suffix.endswith(".npy"):
            array = _read_npy(self.content, member, where)
        elif self.is_sentiment:
            self.not_arrays[suffix] += 1
            return
        else:
            name = suffix
            array = _Array(member.offset, "uint8", (member.size,))
        if self.is_sentiment:
            shape = shape_as_read(name, array.dtype, array.shape)
            if shape is None:
                return
            array = array._replace(shape=shape)
        kind = (array.dtype, len(array.shape))
        before = self.fields.setdefault(name, kind)
        if before != kind:
            raise DataError(
                f"{where}: {kind[0]} with {kind[1]} axes, but {before[0]} with {before[1]} axes "
                "before; convert the data with python -m data_shards.convert, or leave it out "
                f"with --leave-out {quote(name)}"
            )
        sample.arrays[name] = (array.offset, *array.shape)


def _field_name(suffix: str) -> str:
    """``audio`` for both ``audio.npy`` and ``audio``; a bare ``npy`` is a field of that name."""
    if not suffix.endswith("npy"):
        return suffix
    return suffix.removesuffix("npy").rstrip(".") or "npy"


def _read_npy(content: mmap.mmap, member: Member, where: str) -> _Array:
    """Where the numbers of a ``.npy`` member are, and what they are."""
    start = content[member.offset : member.offset + min(member.size, 12)]
    # Two bytes give the length of a header of version 1, four that of later ones.
    length = start[8:10] if start[6:7] == b"\1" else start[8:12]
    wanted = 12 + int.from_bytes(length, "little")
    head = content[member.offset : member.offset + min(member.size, wanted, _NPY_HEADER)]
    try:
        shape, fortran, dtype, header_bytes = _parse_npy_header(head)
    except Exception as error:  # whatever the parser of a header meets in garbage
        raise DataError(f"{where}: not a readable .npy: {type(error).__name__}: {error}") from error
    is_little_endian = dtype.newbyteorder("<") == dtype
    name = _dtype_name(dtype)
    if not is_little_endian or name not in NUMBERS:
        raise DataError(
            f"{where}: dtype {dtype}; only little-endian numbers are read, never objects"
        )
    if fortran and sum(extent > 1 for extent in shape) > 1:
        raise DataError(
            f"{where}: stored in Fortran order; write it anew with np.ascontiguousarray"
        )
    payload = member.size - header_bytes
    is_negative = any(extent < 0 for extent in shape)
    if len(shape) > MAX_AXES or is_negative or prod(shape) * dtype.itemsize != payload:
        raise DataError(
            f"{where}: shape {shape} of {dtype} does not fit a member of {member.size} bytes"
        )
    return _Array(member.offset + header_bytes, name, shape)


def _parse_npy_header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, Fortran order, dtype, and the length of the header that ``head`` starts with, or
    is."""
    version = np.lib.format.read_magic(BytesIO(head))
    if version == (1, 0):
        length = 10 + int.from_bytes(head[8:10], "little")
    elif version == (2, 0):
        length = 12 + int.from_bytes(head[8:12], "little")
    else:
        raise ValueError(f"format version {version}")
    shape, fortran, dtype = _parse_npy_fields(version, head[8:length])
    return shape, fortran, dtype, length


# Few dtypes and headers come many times, so both are kept.
@lru_cache(maxsize=64)
def _dtype_name(dtype: np.dtype) -> str:
    return dtype.name


@lru_cache(maxsize=4096)
def _parse_npy_fields(
    version: tuple[int, int], header: bytes
) -> tuple[tuple[int, ...], bool, np.dtype]:
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(BytesIO(header))
    else:
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(BytesIO(header))
    return tuple(int(extent) for extent in shape), fortran, dtype
