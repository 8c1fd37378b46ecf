"""The shards of a split as a table in a file of its own, for manifests of very many.

A million shards as JSON take half a minute to parse, and a gigabyte in every rank. A table is a
safetensors file of five columns beside ``manifest.json``, which vouches for it. Numbers are read
when it is opened; the name and checksums of a shard when the shard is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from core.file_access.regular_files import check_regular_file
from core.files import sha256_of_bytes, sha256_of_file
from data_shards.shards.manifest_facts import first_problem
from data_shards.shards.shard import MAX_SHARD_BYTES, SHA256, STRICT, DataError, Shard, refused

MANY = 10_000  # shards; a manifest of more has tables
SUFFIX = ".shards"
LONGEST_NAME = 255  # bytes
BLOCK = 4096  # rows that are decoded at a time

_FILE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.shards")  # never in another folder
_DIGEST = 32  # bytes of a SHA-256
_FIRST = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_"
_LATER = _FIRST + b".+=@-"


@dataclass(frozen=True)
class TableFile:
    """A table as ``manifest.json`` knows it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    file: str  # "train.shards"
    bytes: int
    sha256: str
    shards: int
    samples: int


OpenTable = Callable[[TableFile], Path]  # where the table is, compared with its checksum


class ShardTable(Sequence[Shard]):
    """The shards of one split, read from a table as they are asked for.

    Args:
        path: the file, which was compared with its checksum.
        where: its name for messages.
    """

    def __init__(self, path: Path, described: TableFile, where: str):
        self.path = path
        self.described = described
        self.where = where
        check_regular_file(path)
        try:
            self._file: Any = safe_open(path, framework="numpy")
            self.samples: np.ndarray = self._file.get_tensor("samples")
            self.bytes: np.ndarray = self._file.get_tensor("bytes")
            self._check()
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            raise refused(f"{where} is no table of shards or is damaged ({problem})") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardTable, (self.path, self.described, self.where)

    def __len__(self) -> int:
        return self.described.shards

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardTable) and self.described == other.described

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[Shard, ...]: ...
    def __getitem__(self, number: int | slice) -> Shard | tuple[Shard, ...]:
        if isinstance(number, slice):
            return tuple(self[chosen] for chosen in range(len(self))[number])
        row = range(len(self))[number]
        return next(self._decoded(row, row + 1))

    def __iter__(self) -> Iterator[Shard]:
        for first in range(0, len(self), BLOCK):
            yield from self._decoded(first, min(first + BLOCK, len(self)))

    def _decoded(self, first: int, stop: int) -> Iterator[Shard]:
        names = self._names[first:stop]
        sha256, index_sha256 = self._sha256[first:stop], self._index_sha256[first:stop]
        for row in range(stop - first):
            yield Shard(
                name=names[row].tobytes().rstrip(b"\0").decode("ascii"),
                samples=int(self.samples[first + row]),
                bytes=int(self.bytes[first + row]),
                sha256=sha256[row].tobytes().hex(),
                index_sha256=index_sha256[row].tobytes().hex(),
            )

    @cached_property
    def _names(self) -> Any:
        return self._file.get_slice("names")

    @cached_property
    def _sha256(self) -> Any:
        return self._file.get_slice("sha256")

    @cached_property
    def _index_sha256(self) -> Any:
        return self._file.get_slice("index_sha256")

    def _check(self) -> None:
        """ValueError unless every row could stand in a manifest."""
        count = len(self)
        for name, column in (("samples", self.samples), ("bytes", self.bytes)):
            if column.dtype != np.int64 or column.shape != (count,):
                raise ValueError(f"{name} of shape {column.shape} and dtype {column.dtype}")
        for name, column in (("sha256", self._sha256), ("index_sha256", self._index_sha256)):
            if column.get_dtype() != "U8" or column.get_shape() != [count, _DIGEST]:
                raise ValueError(f"{name} of shape {column.get_shape()}")
        few_bytes = (self.samples <= 0) | (self.samples > self.bytes)
        if (few_bytes | (self.bytes >= MAX_SHARD_BYTES)).any():
            raise ValueError("impossible numbers of samples or bytes")
        if int(self.samples.sum()) != self.described.samples:
            raise ValueError("other samples than the manifest says")
        names = self._file.get_tensor("names")
        if names.dtype != np.uint8 or names.ndim != 2 or len(names) != count:
            raise ValueError(f"names of shape {names.shape}")
        check_names(names)


def check_names(names: np.ndarray) -> None:
    """ValueError unless (N, width) bytes, filled up with zeros, are plain names that differ."""
    width = names.shape[1]
    if not len(".tar") < width <= LONGEST_NAME:
        raise ValueError(f"names of {width} bytes")
    allowed = np.zeros(256, bool)
    allowed[list(_LATER)] = True
    length = (names != 0).sum(1)
    has_gap = (np.diff((names == 0).astype(np.int8), axis=1) < 0).any()
    starts_well = np.isin(names[:, 0], list(_FIRST)).all()
    if has_gap or not starts_well or not (allowed[names] | (names == 0)).all():
        raise ValueError("a name is no plain file name")
    ending = names[np.arange(len(names))[:, None], length[:, None] - np.arange(4, 0, -1)]
    if (length <= 4).any() or (ending != np.frombuffer(b".tar", np.uint8)).any():
        raise ValueError("a name does not end in .tar")
    joined = names_joined(names)
    if not (joined[1:] > joined[:-1]).all() and len(np.unique(joined)) < len(joined):
        raise ValueError("a shard is listed twice")


def name_in_two(tables: Sequence[ShardTable]) -> bool:
    """Whether two of the tables list a shard of one name."""
    names = []
    for table in tables:
        names.append(np.sort(names_joined(table._file.get_tensor("names")), kind="stable"))
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            is_apart = one[-1] < other[0] or other[-1] < one[0]
            if not is_apart and len(np.intersect1d(one, other)):
                return True
    return False


def names_joined(names: np.ndarray) -> np.ndarray:
    """(N,) byte strings of (N, width) bytes."""
    return np.ascontiguousarray(names).view(f"S{names.shape[1]}").ravel()


def table_bytes(shards: Sequence[Shard]) -> bytes:
    """The contents of the table of these shards."""
    names = np.array([shard.name.encode("ascii") for shard in shards])
    columns = {
        "names": names.view(np.uint8).reshape(len(shards), -1),
        "samples": sample_counts(shards),
        "bytes": byte_counts(shards),
        "sha256": _digests([shard.sha256 for shard in shards]),
        "index_sha256": _digests([shard.index_sha256 for shard in shards]),
    }
    return save(columns)


def _digests(checksums: Sequence[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(checksums)), np.uint8).reshape(-1, _DIGEST)


def describe_table(split: str, shards: Sequence[Shard]) -> TableFile:
    """How a manifest knows the table of a split."""
    if isinstance(shards, ShardTable):
        return shards.described
    body = table_bytes(shards)
    samples = int(sample_counts(shards).sum())
    return TableFile(f"{split}{SUFFIX}", len(body), sha256_of_bytes(body), len(shards), samples)


def sample_counts(shards: Sequence[Shard]) -> np.ndarray:
    """(N,) int64, the samples of each shard."""
    if isinstance(shards, ShardTable):
        return shards.samples
    return np.array([shard.samples for shard in shards], np.int64)


def byte_counts(shards: Sequence[Shard]) -> np.ndarray:
    """(N,) int64, the bytes of each shard's tar."""
    if isinstance(shards, ShardTable):
        return shards.bytes
    return np.array([shard.bytes for shard in shards], np.int64)


def table_in(folder: Path, table: TableFile) -> Path:
    """The table in a folder of this machine, compared with its checksum."""
    path = folder / table.file
    try:
        found = sha256_of_file(path)
    except FileNotFoundError:
        raise refused(f"{path} is missing, in which manifest.json has its shards") from None
    if found != table.sha256:
        raise refused(f"{path} is damaged: its checksum is not the one of manifest.json")
    return path


def open_tables(tables: Any, where: str, open_table: OpenTable | None) -> dict[str, ShardTable]:
    """The tables that a manifest names, by split."""
    try:
        described = TypeAdapter(dict[str, TableFile]).validate_json(json.dumps(tables))
    except ValidationError as error:
        raise DataError(f"{where}: tables: {first_problem(error)}") from error
    opened: dict[str, ShardTable] = {}
    for split, table in described.items():
        if table.file != f"{split}{SUFFIX}" or not _FILE.fullmatch(table.file):
            raise refused(f"{where}: table {table.file!r} of split {split!r} has no plain name")
        if not 0 < table.shards <= table.samples or not SHA256.fullmatch(table.sha256):
            raise refused(f"{where}: table {table.file!r}: {table.shards} shards")
        if open_table is None:
            raise refused(f"{where} has its shards in {table.file}, which is not at hand")
        opened[split] = ShardTable(open_table(table), table, f"{where}: {table.file}")
    if name_in_two(list(opened.values())):
        raise refused(f"{where}: a shard is listed twice")
    return opened
