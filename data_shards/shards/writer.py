"""Writing one shard: a plain WebDataset tar, and beside it the index that lets a reader skip the tar walk.

The same samples give the same bytes on every machine: USTAR headers with a fixed time, owner and mode, one
``<key>.<field>.npy`` member per array, ``<key>.json`` with the id, ``<key>.txt`` with the transcript, sorted by name.
A shard appears under its name only when it is complete and on disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_shards.shards.index_table import ABSENT, Index
from data_shards.shards.manifest import NUMBERS, DataError, Sample, Shard

BLOCK = 512
RECORD = 20 * BLOCK  # a tar ends on a multiple of this
_KEY = re.compile(r"[^./\\\s\x00-\x1f\x7f]+")
_FIELD = re.compile(r"[A-Za-z0-9_-]+")


def plain_key(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


def index_name(name: str) -> str:
    """The index that lies beside a shard: ``train-000000.tar`` has ``train-000000.idx``."""
    return name.removesuffix(".tar") + ".idx"


def write_shard(folder: Path, name: str, samples: Iterable[tuple[str, Sample]]) -> Shard:
    """Write ``samples``, (key, sample) pairs, to ``folder/name`` and its index; give the manifest's record of them.

    Both files are staged beside their place, flushed to disk and renamed, the tar last: a tar under its own name is
    complete. When anything fails, nothing is left. Samples are written as they come, so memory holds one at a time.

    Raises:
        DataError: a key or field that WebDataset would split, a duplicate key, an array of objects, no samples at all.
    """
    if not name.endswith(".tar") or "/" in name or name.startswith("."):
        raise DataError(f"a shard's name must end in .tar and hold no folder, got {name!r}")
    with staged(folder / name) as tar, staged(folder / index_name(name)) as beside:
        out = _Tar(tar, name)
        for key, sample in samples:
            out.add(key, sample)
        index = out.finish()
        body = index.to_bytes()
        beside.write(body)
    return Shard(
        name, len(index), index.tar_bytes, out.sha256.hexdigest(), hashlib.sha256(body).hexdigest()
    )


@contextmanager
def staged(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears as ``path`` when the block ends well, and not at all otherwise."""
    staging = path.with_name(f".{path.name}.staging")
    try:
        with staging.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sha256_of(file: IO[bytes]) -> str:
    """SHA-256 of an open file, from its start, read in pieces."""
    digest, position = hashlib.sha256(), 0
    block = memoryview(bytearray(1 << 18))  # stays in the processor's cache
    while size := os.preadv(file.fileno(), [block], position):
        digest.update(block[:size])
        position += size
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Tar:
    """A tar under construction, and what its index will say."""

    def __init__(self, file: IO[bytes], name: str):
        self.file, self.name = file, name
        self.sha256 = hashlib.sha256()
        self.position = 0
        self.keys: dict[str, None] = {}
        self.arrays: dict[str, tuple[str, int]] = {}  # field -> dtype, number of axes
        self.fixed: list[list[int]] = []
        self.places: list[dict[str, tuple[int, ...]]] = []  # per sample: field -> offset, shape

    def add(self, key: str, sample: Sample) -> None:
        where = f"shard {self.name}, sample {sample.id!r} (key {key!r})"
        if not plain_key(key):
            raise DataError(f"{where}: a key must not be empty or hold dots, slashes or blanks")
        if key in self.keys:
            raise DataError(f"{where}: this key is already in the shard; keys must be unique")
        self.keys[key] = None
        start, crc = self.position, 0
        place: dict[str, tuple[int, ...]] = {}
        strings = {"json": (ABSENT, ABSENT), "txt": (ABSENT, ABSENT)}  # offset, size
        for suffix, field, head, payload in _members(sample, where):
            blocks = (header(f"{key}.{suffix}", len(head) + len(payload), where), head, payload)
            offset = self.position + BLOCK + len(head)
            for block in (*blocks, bytes(-sum(map(len, blocks)) % BLOCK)):
                crc = zlib.crc32(block, crc)
                self._write(block)
            if field is None:
                strings[suffix] = (offset, len(payload))
            else:
                place[field] = (offset, *self._known(field, sample.arrays[field], where))
        self.fixed.append([start, self.position, crc, *strings["json"], *strings["txt"]])
        self.places.append(place)

    def finish(self) -> Index:
        if not self.fixed:
            raise DataError(f"shard {self.name} would hold no samples; leave it out")
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.position % RECORD))
        return Index.build(self.arrays, list(self.keys), self.fixed, self.places, self.position)

    def _known(self, field: str, array: np.ndarray, where: str) -> tuple[int, ...]:
        kind = (array.dtype.name, array.ndim)
        if self.arrays.setdefault(field, kind) != kind:
            before = self.arrays[field]
            raise DataError(
                f"{where}: {field!r} is {kind[0]} with {kind[1]} axes, but {before[0]} with {before[1]} axes before"
            )
        return array.shape

    def _write(self, block: bytes | memoryview) -> None:
        self.file.write(block)
        self.sha256.update(block)
        self.position += len(block)


def _members(sample: Sample, where: str) -> list[tuple[str, str | None, bytes, bytes | memoryview]]:
    """(name after the key, field or None, start of the payload, rest of it), sorted by name."""
    members: list[tuple[str, str | None, bytes, bytes | memoryview]] = []
    for field, array in sample.arrays.items():
        if not _FIELD.fullmatch(field):
            raise DataError(f"{where}: field {field!r} must be letters, digits, '_' and '-'")
        if array.dtype.name not in NUMBERS:
            raise DataError(
                f"{where}: {field!r} is of dtype {array.dtype}; only numbers are stored, never objects"
            )
        if array.dtype.newbyteorder("<") != array.dtype:
            raise DataError(
                f"{where}: {field!r} is big-endian; convert it with .astype({array.dtype.name!r})"
            )
        whole = array if array.flags.c_contiguous else array.copy(order="C")
        payload = whole.reshape(-1).view(np.uint8).data
        members.append((f"{field}.npy", field, npy_header(array.dtype.str, array.shape), payload))
    if "id" in sample.extra:
        raise DataError(f"{where}: 'extra' must not hold 'id', which is the sample's own")
    members.append(("json", None, b"", _json({"id": sample.id, **sample.extra}, where)))
    if sample.text is not None:
        members.append(("txt", None, b"", _utf8(sample.text, where)))
    return sorted(members, key=lambda member: member[0])


def _json(record: dict[str, Any], where: str) -> bytes:
    try:
        return _utf8(json.dumps(record, ensure_ascii=False, allow_nan=False), where)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: 'extra' must be plain JSON without nan: {error}") from error


def _utf8(text: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: text is not valid Unicode: {error}") from error


@lru_cache(maxsize=4096)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers in a ``.npy`` member."""
    out = BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return out.getvalue()


def header(name: str, size: int, where: str) -> bytes:
    """What stands before a member in the tar."""
    info = tarfile.TarInfo(name)  # time, owner and group are zero, names empty
    info.size, info.mode = size, 0o644
    try:
        return info.tobuf(tarfile.USTAR_FORMAT)
    except ValueError as error:
        raise DataError(f"{where}: {name!r} does not fit a tar header: {error}") from error
