"""The index of one shard: where every array of every sample lies in the tar, and its shape.

A small safetensors file beside the tar. Its one table has a row per sample; a reader needs no other look at the tar
before it copies numbers out of it. Nothing in an index is believed: every offset is checked against the tar's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_shards.shards.manifest import NUMBERS, DataError

FORMAT = "concord-index"
VERSION = 1
ABSENT = -1  # the offset of what a sample lacks
FIXED = (
    "start",
    "end",
    "crc32",
    "json",
    "json_size",
    "text",
    "text_size",
)  # the table's first columns
START, END, CRC, JSON, JSON_SIZE, TEXT, TEXT_SIZE = range(len(FIXED))
MAX_AXES = 8


@dataclass(frozen=True, eq=False)
class Index:
    """Where S samples lie. ``table`` is (S, C) int64: the columns of FIXED, then per field its offset and its shape."""

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
        start = int(self.key_ends[row - 1]) if row else 0
        return bytes(self.key_bytes[start : int(self.key_ends[row])]).decode("utf-8")

    def keys(self) -> list[str]:
        whole, ends = bytes(self.key_bytes), self.key_ends.tolist()
        return [
            whole[start:end].decode("utf-8") for start, end in zip([0, *ends], ends, strict=False)
        ]

    @staticmethod
    def build(
        arrays: dict[str, tuple[str, int]],
        keys: Sequence[str],
        fixed: Sequence[Sequence[int]],
        places: Iterable[dict[str, tuple[int, ...]]],
        tar_bytes: int,
    ) -> Index:
        """From one entry per sample: its key, its FIXED columns, and per field (offset, *shape)."""
        arrays = dict(sorted(arrays.items()))
        first, width = columns(arrays), _width(arrays)
        table = np.zeros((len(keys), width), np.int64)
        table[:, : len(FIXED)] = fixed
        for row, place in enumerate(places):
            for field, column in first.items():
                numbers = place.get(field, (ABSENT,))
                table[row, column : column + len(numbers)] = numbers
        encoded = [key.encode("utf-8") for key in keys]
        ends = np.cumsum([len(key) for key in encoded], dtype=np.int64)
        return Index(arrays, table, np.frombuffer(b"".join(encoded), np.uint8), ends, tar_bytes)

    def to_bytes(self) -> bytes:
        header = {
            "format": FORMAT,
            "version": VERSION,
            "tar_bytes": self.tar_bytes,
            "arrays": self.arrays,
        }
        tensors = {
            "header": np.frombuffer(json.dumps(header).encode("ascii"), np.uint8),
            "table": self.table,
            "key_bytes": self.key_bytes,
            "key_ends": self.key_ends,
        }
        return save(tensors)

    @staticmethod
    def from_bytes(body: bytes, where: str) -> Index:
        """Parse and check; anything that could lead outside the tar is a DataError that names ``where``."""
        try:
            tensors = load(body)
            header = json.loads(bytes(tensors["header"]))
            if (header["format"], header["version"]) != (FORMAT, VERSION):
                raise DataError(
                    f"{where} is an index of format {header['format']!r}, version {header['version']!r}"
                )
            arrays = {
                str(field): (str(dtype), int(axes))
                for field, (dtype, axes) in header["arrays"].items()
            }
            index = Index(
                arrays,
                tensors["table"],
                tensors["key_bytes"],
                tensors["key_ends"],
                int(header["tar_bytes"]),
            )
            _check(index)
        except DataError:
            raise
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
        ) as e:
            raise DataError(
                f"{where} is no index of this project or is damaged ({type(e).__name__}: {e}); "
                f"make it again with: python -m data_shards.index FOLDER"
            ) from e
        return index


def columns(arrays: dict[str, tuple[str, int]]) -> dict[str, int]:
    """Field -> the column of its offset."""
    first, column = {}, len(FIXED)
    for field, (_, axes) in arrays.items():
        first[field] = column
        column += 1 + axes
    return first


def _width(arrays: dict[str, tuple[str, int]]) -> int:
    return len(FIXED) + sum(1 + axes for _, axes in arrays.values())


def _check(index: Index) -> None:
    """ValueError unless every offset and shape stays inside its own sample, and every sample inside the tar."""
    for field, (dtype, axes) in index.arrays.items():
        if dtype not in NUMBERS or not 0 <= axes <= MAX_AXES:
            raise ValueError(f"field {field!r} of dtype {dtype} with {axes} axes")
    table, ends = index.table, index.key_ends
    if list(index.arrays) != sorted(index.arrays):
        raise ValueError("fields out of order")
    if table.dtype != np.int64 or table.shape != (len(ends), _width(index.arrays)):
        raise ValueError(f"a table of shape {table.shape} and dtype {table.dtype}")
    if (
        ends.dtype != np.int64
        or ends.ndim != 1
        or index.key_bytes.dtype != np.uint8
        or index.key_bytes.ndim != 1
    ):
        raise ValueError("keys of a wrong kind")
    key_starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[: len(ends)]
    if len(ends) and ((ends <= key_starts).any() or ends[-1] != len(index.key_bytes)):
        raise ValueError("keys do not follow each other")
    bytes(index.key_bytes).decode("utf-8")
    start, end = table[:, START], table[:, END]
    after = np.concatenate([np.zeros(1, np.int64), end[:-1]])[: len(end)]
    if ((start < after) | (end <= start) | (end > index.tar_bytes)).any():
        raise ValueError("samples overlap or leave the tar")
    if ((table[:, CRC] < 0) | (table[:, CRC] >= 2**32)).any():
        raise ValueError("checksums out of range")
    for offset, size in ((JSON, JSON_SIZE), (TEXT, TEXT_SIZE)):
        _inside(index, table[:, offset], table[:, size : size + 1], 1, FIXED[offset])
    for field, column in columns(index.arrays).items():
        dtype, axes = index.arrays[field]
        shape = table[:, column + 1 : column + 1 + axes]
        _inside(index, table[:, column], shape, np.dtype(dtype).itemsize, field)


def _inside(index: Index, offset: np.ndarray, shape: np.ndarray, unit: int, what: str) -> None:
    here = offset != ABSENT
    size = (
        np.prod(shape.astype(np.float64), axis=1) * unit
    )  # float: a product that leaves int64 must not wrap around
    start, end = index.table[:, START], index.table[:, END]
    bad = here & ((offset <= start) | (shape < 0).any(axis=1) | (offset + size > end))
    bad |= ~here & ((shape != 0) & (shape != ABSENT)).any(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"{what} of sample {row} lies outside its sample")


def bytes_of(index: Index, fields: Iterable[str]) -> np.ndarray:
    """(S,) int64, how many bytes of these fields each sample has: its length, for bucketing."""
    total = np.zeros(len(index), np.int64)
    first = columns(index.arrays)
    for field in fields:
        if field in first:
            dtype, axes = index.arrays[field]
            column = first[field]
            shape = index.table[:, column + 1 : column + 1 + axes]
            total += np.where(
                index.table[:, column] == ABSENT,
                0,
                np.prod(shape, axis=1) * np.dtype(dtype).itemsize,
            )
    return total


def summary(index: Index) -> dict[str, tuple[str, tuple[tuple[int, ...], ...]]]:
    """Field -> dtype and, for each axis, the smallest and largest extent of it in this shard."""
    found: dict[str, tuple[str, tuple[tuple[int, ...], ...]]] = {}
    for field, column in columns(index.arrays).items():
        dtype, axes = index.arrays[field]
        here = index.table[:, column] != ABSENT
        if here.any():
            shape = index.table[here, column + 1 : column + 1 + axes]
            found[field] = (dtype, tuple((int(axis.min()), int(axis.max())) for axis in shape.T))
    return found


def parse_json(body: bytes, where: str) -> dict[str, Any]:
    """The JSON object of a sample; DataError when it is none."""
    try:
        record = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: JSON of kind {type(record).__name__}, not an object")
    return record
