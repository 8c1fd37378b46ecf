"""The index of one shard: where every array of every sample lies in the tar, and its shape.

A small safetensors file beside the tar. Its one table has a row per sample; a reader needs no other
look at the tar before it copies numbers out of it. Nothing in an index is believed: every offset is
checked against the tar's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from core.command import Refused
from core.file_access.packed_files import HEAD, check_not_packed
from data_shards.shards.manifest import MAX_AXES, NUMBERS, DataError, refuse_repeated_keys

FORMAT = "concord-index"
VERSION = 1
ABSENT = -1  # the offset of what a sample lacks
FIXED = ("start", "end", "crc32", "json", "json_size", "text", "text_size")  # first columns
START, END, CRC, JSON, JSON_SIZE, TEXT, TEXT_SIZE = range(len(FIXED))


@dataclass(frozen=True)
class _Header:
    """What an index says of itself, as JSON in one of its tensors."""

    format: str
    version: int
    tar_bytes: int
    arrays: dict[str, tuple[str, int]]  # field -> dtype, number of axes


@cache
def _header_adapter() -> TypeAdapter[_Header]:
    return TypeAdapter(_Header)


@dataclass(frozen=True, eq=False)
class Index:
    """Where S samples lie: the columns of FIXED, then per field its offset and its shape."""

    arrays: dict[str, tuple[str, int]]  # field -> dtype, number of axes; sorted by name
    table: np.ndarray  # (S, C) int64
    key_bytes: np.ndarray  # uint8, all keys in a row
    key_ends: np.ndarray  # (S,) int64
    tar_bytes: int

    def __len__(self) -> int:
        return len(self.table)

    def column(self, field: str) -> int:
        """The table's column with the offset of ``field``; the columns of its shape follow."""
        return columns(self.arrays)[field]

    def key(self, row: int) -> str:
        """The key of one sample."""
        start = int(self.key_ends[row - 1]) if row else 0
        end = int(self.key_ends[row])
        return bytes(self.key_bytes[start:end]).decode("utf-8")

    def keys(self) -> list[str]:
        """The keys of all samples."""
        joined = bytes(self.key_bytes)
        keys = []
        start = 0
        for end in self.key_ends.tolist():
            keys.append(joined[start:end].decode("utf-8"))
            start = end
        return keys

    @staticmethod
    def build(
        arrays: dict[str, tuple[str, int]],
        keys: Sequence[str],
        fixed: Sequence[Sequence[int]],
        locations: Iterable[dict[str, tuple[int, ...]]],
        tar_bytes: int,
    ) -> Index:
        """From one entry per sample: its key, its FIXED columns, and per field (offset, *shape)."""
        arrays = dict(sorted(arrays.items()))
        first_column = columns(arrays)
        table = np.zeros((len(keys), _width(arrays)), np.int64)
        table[:, : len(FIXED)] = fixed
        for row, location in enumerate(locations):
            for field, column in first_column.items():
                numbers = location.get(field, (ABSENT,))
                table[row, column : column + len(numbers)] = numbers
        encoded_keys = [key.encode("utf-8") for key in keys]
        key_ends = np.cumsum([len(key) for key in encoded_keys], dtype=np.int64)
        key_bytes = np.frombuffer(b"".join(encoded_keys), np.uint8)
        return Index(arrays, table, key_bytes, key_ends, tar_bytes)

    def to_bytes(self) -> bytes:
        """The contents of the index file."""
        header = _Header(FORMAT, VERSION, self.tar_bytes, self.arrays)
        tensors = {
            "header": np.frombuffer(json.dumps(asdict(header)).encode("ascii"), np.uint8),
            "table": self.table,
            "key_bytes": self.key_bytes,
            "key_ends": self.key_ends,
        }
        return save(tensors)

    @staticmethod
    def from_bytes(body: bytes, where: str) -> Index:
        """Parse and check; a DataError names ``where`` if anything could lead outside the tar."""
        check_not_packed(body[:HEAD], where)
        try:
            tensors = load(body)
            header = _header_adapter().validate_json(bytes(tensors["header"]), strict=True)
            if (header.format, header.version) != (FORMAT, VERSION):
                raise DataError(
                    f"{where} is an index of format {header.format!r}, version {header.version}"
                )
            index = Index(
                arrays=header.arrays,
                table=tensors["table"],
                key_bytes=tensors["key_bytes"],
                key_ends=tensors["key_ends"],
                tar_bytes=header.tar_bytes,
            )
            _check(index)
        except Refused:
            raise
        except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            raise DataError(
                f"{where} is no index of this project or is damaged ({problem}); "
                f"make it again with: python -m data_shards.index FOLDER"
            ) from error
        return index


def columns(arrays: dict[str, tuple[str, int]]) -> dict[str, int]:
    """Field -> the column of its offset."""
    first_column = {}
    column = len(FIXED)
    for field, (_, axes) in arrays.items():
        first_column[field] = column
        column += 1 + axes
    return first_column


def _width(arrays: dict[str, tuple[str, int]]) -> int:
    return len(FIXED) + sum(1 + axes for _, axes in arrays.values())


def _shapes(index: Index, field: str) -> np.ndarray:
    """(S, axes) int64, the shape of this field in each sample."""
    first = index.column(field) + 1
    axes = index.arrays[field][1]
    return index.table[:, first : first + axes]


def _check(index: Index) -> None:
    """ValueError unless every array stays inside its sample, and every sample inside the tar."""
    for field, (dtype, axes) in index.arrays.items():
        if dtype not in NUMBERS or not 0 <= axes <= MAX_AXES:
            raise ValueError(f"field {field!r} of dtype {dtype} with {axes} axes")
    if list(index.arrays) != sorted(index.arrays):
        raise ValueError("fields out of order")
    table = index.table
    expected_shape = (len(index.key_ends), _width(index.arrays))
    if table.dtype != np.int64 or table.shape != expected_shape:
        raise ValueError(f"a table of shape {table.shape} and dtype {table.dtype}")
    _check_keys(index)
    _check_samples(index)
    for offset, size in ((JSON, JSON_SIZE), (TEXT, TEXT_SIZE)):
        sizes = table[:, size : size + 1]
        _check_inside(index, table[:, offset], sizes, 1, FIXED[offset])
    for field, (dtype, _) in index.arrays.items():
        offsets = table[:, index.column(field)]
        itemsize = np.dtype(dtype).itemsize
        _check_inside(index, offsets, _shapes(index, field), itemsize, field)


def _check_keys(index: Index) -> None:
    key_bytes, ends = index.key_bytes, index.key_ends
    ends_are_numbers = ends.dtype == np.int64 and ends.ndim == 1
    keys_are_bytes = key_bytes.dtype == np.uint8 and key_bytes.ndim == 1
    if not (ends_are_numbers and keys_are_bytes):
        raise ValueError("keys of a wrong kind")
    has_empty_key = (ends <= _shifted(ends)).any()
    last_end = ends[-1] if len(ends) else len(key_bytes)
    if has_empty_key or last_end != len(key_bytes):
        raise ValueError("keys do not follow each other")
    bytes(key_bytes).decode("utf-8")


def _check_samples(index: Index) -> None:
    start, end, crc = index.table[:, [START, END, CRC]].T
    overlaps = start < _shifted(end)
    is_empty = end <= start
    leaves_tar = end > index.tar_bytes
    if (overlaps | is_empty | leaves_tar).any():
        raise ValueError("samples overlap or leave the tar")
    if ((crc < 0) | (crc >= 2**32)).any():
        raise ValueError("checksums out of range")


def _shifted(ends: np.ndarray) -> np.ndarray:
    """(S,), the end of the one before; 0 for the first."""
    before = np.zeros_like(ends)
    before[1:] = ends[:-1]
    return before


def _check_inside(
    index: Index, offset: np.ndarray, shape: np.ndarray, itemsize: int, name: str
) -> None:
    """ValueError unless arrays of (S, axes) shapes lie in their samples, or are marked absent."""
    is_there = offset != ABSENT
    # float: a product that leaves int64 must not wrap around
    size = np.prod(shape.astype(np.float64), axis=1) * itemsize
    start, end = index.table[:, START], index.table[:, END]
    is_negative = (shape < 0).any(axis=1)
    is_outside = (offset <= start) | is_negative | (offset + size > end)
    has_shape = ((shape != 0) & (shape != ABSENT)).any(axis=1)
    is_wrong = (is_there & is_outside) | (~is_there & has_shape)
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise ValueError(f"{name} of sample {row} lies outside its sample")


def bytes_of(index: Index, fields: Iterable[str]) -> np.ndarray:
    """(S,) int64, how many bytes of these fields each sample has: its length, for bucketing."""
    total = np.zeros(len(index), np.int64)
    for field in fields:
        if field not in index.arrays:
            continue
        is_there = index.table[:, index.column(field)] != ABSENT
        itemsize = np.dtype(index.arrays[field][0]).itemsize
        size = np.prod(_shapes(index, field), axis=1) * itemsize
        total += np.where(is_there, size, 0)
    return total


def summary(index: Index) -> dict[str, tuple[str, tuple[tuple[int, ...], ...]]]:
    """Field -> dtype and, for each axis, the smallest and largest extent of it in this shard."""
    described: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {}
    for field, (dtype, _) in index.arrays.items():
        is_there = index.table[:, index.column(field)] != ABSENT
        if is_there.any():
            shapes = _shapes(index, field)[is_there]
            smallest = shapes.min(axis=0).tolist()
            largest = shapes.max(axis=0).tolist()
            described[field] = (dtype, tuple(zip(smallest, largest, strict=True)))
    return described


def parse_json(body: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a sample; DataError when it is none."""
    try:
        record = json.loads(body, object_pairs_hook=refuse_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: JSON of kind {type(record).__name__}, not an object")
    return record
