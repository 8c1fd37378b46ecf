"""Arrays that cells of a table point to: ``FILE.npy``, ``FILE.npz#KEY``, with ``[START:STOP]``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.command import Refused
from core.file_access.regular_files import check_regular_file
from data_shards.array_files import map_npy, read_npz
from data_shards.shards.manifest import DataError
from data_shards.shards.manifest_facts import LARGEST_ID
from data_shards.shards.single_values import shown
from data_shards.sources.table_rows import Row, parse_json

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
    path = existing_file(folder, name, where)
    if start is None:
        return Reference(path, key, None)
    if stop is None:
        return Reference(path, key, int(start))
    return Reference(path, key, slice(int(start), int(stop.removeprefix(":"))))


def existing_file(folder: Path, name: str, where: str) -> Path:
    """The plain file ``name`` inside ``folder``, links followed."""
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise DataError(f"{where}: {name!r} lies outside the table's folder; move it there")
        check_regular_file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{where}: there is no file {name!r} in {folder}") from None
    except (OSError, RuntimeError) as error:  # a name too long, links in a circle, no permission
        problem = getattr(error, "strerror", None) or "its links lead in a circle"
        raise DataError(f"{where}: cannot open {name!r}: {problem}") from None
    except DataError:
        raise
    except Refused as refusal:
        raise DataError(f"{where}: {refusal}") from None
    return path


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
    except Refused as refusal:
        raise DataError(f"{where}: {refusal}") from None
    except OSError as error:
        raise DataError(f"{where}: cannot read {path.name}: {error.strerror or error}") from None
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
    return map_npy(path) if key is None else read_npz(path, key)


def load_token_ids(folder: Path, row: Row) -> np.ndarray:
    """The cell "tokens" as (T,) int32: a list, a list written as JSON, or an array file."""
    where = row.describe("tokens")
    value = row.cells["tokens"]
    if is_reference(value):
        value = load_array(folder, row, "tokens")
    elif isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            raise DataError(
                f"{where}: {shown(value)} is neither a list of token ids nor an array file"
            ) from None
    if not isinstance(value, np.ndarray):
        value = _list_of_ids(value, where)
    is_list_of_integers = value.ndim == 1 and value.dtype.kind in "iu"
    is_empty_list = value.ndim == 1 and len(value) == 0
    if is_empty_list or (is_list_of_integers and 0 <= value.min() <= value.max() < LARGEST_ID):
        return value.astype("<i4")
    raise DataError(_no_ids(where, value))


def _list_of_ids(value: Any, where: str) -> np.ndarray:
    if not isinstance(value, list):
        raise DataError(_no_ids(where, value))
    for item in value:
        is_id = isinstance(item, int) and not isinstance(item, bool) and 0 <= item < LARGEST_ID
        if not is_id:
            raise DataError(_no_ids(where, item))
    return np.array(value, np.int64)


def _no_ids(where: str, value: Any) -> str:
    return (
        f"{where}: token ids must be a list of whole numbers from 0 to {LARGEST_ID - 1}, "
        f"got {shown(value)}"
    )
