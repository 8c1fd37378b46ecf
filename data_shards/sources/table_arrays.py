"""Arrays that cells of a table point to: ``FILE.npy``, ``FILE.npz#KEY``, with ``[START:STOP]``."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.shards.manifest import DataError
from data_shards.sources.table_rows import Row

LARGEST_ID = 2**31  # exclusive
_REFERENCE = re.compile(r"(.+?\.np[yz])(?:#([^\[\]]+))?(?:\[(\d+)(:\d+)?\])?")


@dataclass(frozen=True)
class Reference:
    """What a cell points to. The file is there, inside the table's folder."""

    path: Path
    key: str | None  # of an .npz
    part: slice | int | None  # of the first axis


def is_reference(value: Any) -> bool:
    """Whether a cell's value has the form of a reference."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def resolve(folder: Path, row: Row, column: str) -> Reference:
    """The reference in a cell; DataError where there is no such file inside the table's folder."""
    value = row.cells[column]
    where = row.describe(column)
    match = _REFERENCE.fullmatch(str(value))
    if match is None:
        raise DataError(f"{where}: {value!r} is neither FILE.npy nor FILE.npz#KEY (docs/data.md)")
    name, key, start, stop = match.groups()
    if name.endswith(".npz") and key is None:
        raise DataError(f"{where}: {value!r}: an .npz needs a #KEY")
    if name.endswith(".npy") and key is not None:
        raise DataError(f"{where}: {value!r}: an .npy has no keys")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {name!r} lies outside the table's folder; move it there")
    if not path.is_file():
        raise DataError(f"{where}: there is no file {name!r} in {folder}")
    if start is None:
        return Reference(path, key, None)
    if stop is None:
        return Reference(path, key, int(start))
    return Reference(path, key, slice(int(start), int(stop.removeprefix(":"))))


def load_array(folder: Path, row: Row, column: str) -> np.ndarray:
    """The array that a cell points to."""
    reference = resolve(folder, row, column)
    path, key, part = reference.path, reference.key, reference.part
    where = row.describe(column)
    status = path.stat()
    try:
        whole = _open(path, key, status.st_size, status.st_mtime_ns)
    except KeyError:
        raise DataError(f"{where}: {path.name} has no key {key!r}") from None
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise DataError(f"{where}: cannot read {path.name}: {error}") from None
    if part is None:
        return whole
    end = part.stop if isinstance(part, slice) else part + 1
    if whole.ndim == 0 or end > len(whole):
        raise DataError(
            f"{where}: {row.cells[column]!r} points past the end of an array of shape {whole.shape}"
        )
    return whole[part]


@lru_cache(maxsize=8)
def _open(path: Path, key: str | None, size: int, changed: int) -> np.ndarray:
    """The last few arrays stay open, for rows that share one; ``.npy`` files are only mapped."""
    if key is None:
        return np.lib.format.open_memmap(path, mode="r")
    with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
        return arrays[key]


def load_token_ids(folder: Path, row: Row) -> np.ndarray:
    """The cell "tokens" as (T,) int32: a list, a list written as JSON, or an array file."""
    value = row.cells["tokens"]
    if is_reference(value):
        value = load_array(folder, row, "tokens")
    elif isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            raise DataError(
                f"{row.describe('tokens')}: neither a list of token ids nor an array file"
            ) from None
    ids = np.asarray(value)
    is_list_of_integers = ids.ndim == 1 and ids.dtype.kind in "iu"
    is_empty_list = ids.ndim == 1 and len(ids) == 0
    if is_list_of_integers and (is_empty_list or 0 <= ids.min() <= ids.max() < LARGEST_ID):
        return ids.astype("<i4")
    raise DataError(
        f"{row.describe('tokens')}: token ids must be a list of whole numbers from 0, "
        f"got {value!r:.80}"
    )
