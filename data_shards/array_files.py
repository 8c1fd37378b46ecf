"""Arrays in ``.npy`` files and ``.npz`` archives that somebody else made.

NumPy's own readers allocate what a header or an archive claims, and advise to allow pickles. Here a
header is compared with the bytes that are really there, and nothing but numbers and strings is
read.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from core.command import Refused
from core.file_access.budget import Budget
from core.file_access.packed_files import HEAD, check_not_packed
from core.file_access.regular_files import open_regular_file
from data_shards.shards.manifest import DataError

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000  # bytes, as in NumPy
MOST_ITEMS = 2**40  # of an array, whatever their size: an axis of no extent hides the others
ARCHIVE_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Header:
    """What a ``.npy`` says of the numbers behind it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    order: Literal["C", "F"]
    offset: int  # of the first number

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def map_npy(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file, mapped and read-only; Refused for anything else."""
    with open_regular_file(path) as file:
        head = file.read(HEAD)
        if head.startswith(b"PK"):
            raise DataError(f"{path} is an .npz archive; call it so, and give the #KEY of an array")
        check_not_packed(head, path)
        file.seek(0)
        header = _read_header(file, str(path))
        size = os.fstat(file.fileno()).st_size
        _check_size(header, size, str(path))
        if header.bytes == 0:
            return np.zeros(header.shape, header.dtype)
        return np.memmap(
            file,
            dtype=header.dtype,
            mode="r",
            offset=header.offset,
            shape=header.shape,
            order=header.order,
        )


def read_npz(path: Path, key: str) -> np.ndarray:
    """The array ``key`` of an ``.npz``; KeyError where it has none, Refused for anything else."""
    with open_regular_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read_member(archive, file, f"{key}.npy", f"{path}#{key}")
        except (KeyError, Refused):
            raise
        except ARCHIVE_ERRORS as error:
            raise DataError(_damaged(path, error)) from None


def npz_keys(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz``; Refused for anything else."""
    with open_regular_file(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except ARCHIVE_ERRORS as error:
            raise DataError(_damaged(path, error)) from None
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def _read_member(archive: zipfile.ZipFile, file: IO[bytes], name: str, where: str) -> np.ndarray:
    member = archive.getinfo(name)
    if archive.namelist().count(name) > 1:
        raise DataError(f"{where}: the archive holds this array twice; write it again")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where}: packed in an unusual way; write it again with np.savez")
    packed = min(member.compress_size, os.fstat(file.fileno()).st_size)
    advice = "if this is meant, save it with np.savez, which does not pack, or as a .npy"
    Budget.of_packed(packed, where, advice).claim(member.file_size, "the array unpacked")
    with archive.open(member) as content:
        header = _read_header(content, where)
        _check_size(header, member.file_size, where)
        body = content.read(header.bytes)
    if len(body) < header.bytes:
        raise EOFError(f"{name} ends after {len(body)} of {header.bytes} bytes")
    if header.bytes == 0:
        return np.zeros(header.shape, header.dtype)
    return np.frombuffer(body, header.dtype).reshape(header.shape, order=header.order)


def _read_header(file: IO[bytes], where: str) -> _Header:
    start = file.read(8)  # magic and version
    if start[:6] != MAGIC:
        raise DataError(f"{where} is no .npy array; save it with np.save")
    digits = {b"\1\0": 2, b"\2\0": 4}.get(start[6:])
    if digits is None:
        raise DataError(f"{where}: records, or an array of an unknown version; save plain numbers")
    stated = file.read(digits)
    length = int.from_bytes(stated, "little")
    if length > LONGEST_HEADER:
        raise DataError(f"{where}: a header of {length} bytes; fetch or write it again")
    text = BytesIO(stated + file.read(length))
    parse: Any = {2: np.lib.format.read_array_header_1_0, 4: np.lib.format.read_array_header_2_0}
    try:
        shape, is_fortran, dtype = parse[digits](text)
    except Exception as error:  # NumPy evaluates it as a literal, which fails in nearly any way
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{where}: a damaged header ({problem}); fetch or write it again") from None
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, which are never read; save numbers, such as "
            "np.save(FILE, np.asarray(VALUES, np.float32))"
        )
    if dtype.kind not in "biufcSU" or dtype.itemsize == 0:
        raise DataError(f"{where} holds {dtype}; only numbers and strings are read")
    order: Literal["C", "F"] = "F" if is_fortran else "C"
    return _Header(shape, dtype, order, 8 + digits + length)


def _check_size(header: _Header, size: int, where: str) -> None:
    """Refused unless the numbers that the header announces fit into ``size`` bytes in all."""
    extents = math.prod(max(extent, 1) for extent in header.shape)
    if min(header.shape, default=0) < 0 or extents > MOST_ITEMS:
        raise DataError(f"{where}: an array of shape {header.shape}; fetch or write it again")
    held = size - header.offset
    if header.bytes > held:
        raise DataError(
            f"{where} is cut off: its header announces {header.bytes} bytes of numbers, "
            f"and {max(held, 0)} are there; fetch or write it again"
        )


def _damaged(path: Path, error: Exception) -> str:
    problem = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{path} is damaged or no .npz archive ({problem}); fetch or write it again"
