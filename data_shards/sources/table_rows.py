"""The rows of a table, one at a time: CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from core.file_access.budget import Budget
from core.file_access.packed_files import HEAD, check_not_packed
from core.file_access.regular_files import open_regular_file
from data_shards.shards.manifest import DataError, refuse_constant, refuse_repeated_keys
from data_shards.shards.single_values import as_number, shown

LONGEST_CELL = 1 << 24
LONGEST_LINE = 1 << 24  # of JSON, in bytes
DEEPEST = 32  # lists inside lists of a cell
ROWS_AT_ONCE = 256  # of Parquet
# Columns of which each cell is one word or number.
SINGLE = {"id", "split", "class", "text", "video"}


@dataclass(frozen=True)
class Row:
    """One row: its cells by column, empty ones left out, and where it stands, for messages."""

    id: str
    split: str  # as it stands in the table; see split_called
    cells: dict[str, Any]  # id and split are among them
    where: str  # "table.csv, line 3 ('a')"

    def describe(self, column: str) -> str:
        """Where a cell stands, for messages."""
        return f"{self.where}: {column}"

    def number(self, column: str) -> float:
        """A cell as a number; DataError where it is none."""
        return as_number(self.cells[column], self.describe(column))


def read_rows(table: Path, needed: tuple[str, ...] = ("id", "split")) -> Iterator[Row]:
    """The rows of a table; DataError for one without a cell that is needed, of which id is one.

    Where split is not needed, a row's is empty if there is none.
    """
    kind = table.suffix.lower()
    if kind == ".csv":
        numbered_rows = _csv_rows(table)
    elif kind == ".parquet":
        numbered_rows = _parquet_rows(table)
    else:
        numbered_rows = _json_rows(table)
    unit = "row" if kind == ".parquet" else "line"
    for number, cells in numbered_rows:
        where = f"{table}, {unit} {number}"
        filled: dict[str, Any] = {}
        for column, value in cells.items():
            _check_cell(column, value, where)
            if value is not None and value != "":
                filled[column] = value
        for name in needed:
            if name not in filled:
                raise DataError(
                    f"{where}: no {name!r}; every row needs {' and '.join(needed)} (docs/data.md)"
                )
        filled["id"] = str(filled["id"])
        split = str(filled.get("split", ""))
        yield Row(filled["id"], split, filled, f"{where} ({shown(filled['id'])})")


def _check_cell(column: str, value: Any, where: str) -> None:
    """DataError for what JSON and Parquet can put into a cell, and nobody can use."""
    if column in SINGLE and not isinstance(value, str | int | float | None):
        raise DataError(f"{where}: {column}: {shown(value)}, where a word or number should be")
    if column == "label" or column.startswith("label_"):
        return  # what is no number is refused as a label
    problem = _why_not_storable(value, 0)
    if problem:
        raise DataError(f"{where}: {column}: {problem}")


def _why_not_storable(value: Any, depth: int) -> str | None:
    """Why the JSON of a sample cannot hold a value, or None."""
    if depth > DEEPEST:
        return f"lists in lists deeper than {DEEPEST}"
    if isinstance(value, str):
        is_text = value.isascii() or value.encode("utf-8", "replace").decode("utf-8") == value
        return None if is_text else f"{shown(value)} is no valid Unicode; correct the text"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no value; leave the cell empty where there is none"
    if value is None or isinstance(value, int | float):
        return None
    if isinstance(value, list | dict):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        problems = (_why_not_storable(item, depth + 1) for item in inner)
        return next((problem for problem in problems if problem), None)
    return f"a {type(value).__name__}, which JSON cannot hold; store it as text or a number"


def parse_json(text: str | bytes) -> Any:
    """A value in JSON; ValueError where it is none, or could be read in two ways."""
    return json.loads(text, object_pairs_hook=refuse_repeated_keys, parse_constant=refuse_constant)


def _open(table: Path) -> IO[bytes]:
    file = open_regular_file(table)
    try:
        check_not_packed(file.read(HEAD), table)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _check_columns(names: list[str], where: str) -> None:
    """DataError unless every column has a name of its own."""
    known = set()
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise DataError(f"{where}: column {number} has no name; give it one, or remove it")
        if name in known:
            raise DataError(f"{where}: two columns are called {name!r}; rename or remove one")
        known.add(name)


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    try:
        with (
            _open(table) as file,
            io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text,
        ):
            reader = csv.DictReader(text, strict=True)
            _check_columns(list(reader.fieldnames or ()), f"{table}, line 1")
            for cells in reader:
                # csv puts what is too much under None, and None in place of what is missing
                if None in cells or None in cells.values():
                    raise DataError(
                        f"{table}, line {reader.line_num}: "
                        "not as many cells as the header has columns"
                    )
                yield reader.line_num, cells
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table} is no CSV in UTF-8: {error}") from None


def _json_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open(table) as file:
        for number, line in enumerate(_lines(file, table), 1):
            if not line.strip():
                continue
            try:
                cells = parse_json(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{table}, line {number}: not JSON: {error}") from None
            if not isinstance(cells, dict):
                raise DataError(
                    f"{table}, line {number}: a {type(cells).__name__}, "
                    "not an object with named values"
                )
            yield number, cells


def _lines(file: IO[bytes], table: Path) -> Iterator[bytes]:
    """The lines of a file, without the byte order mark that some programs begin it with."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(f"{table}, line {number}: longer than {LONGEST_LINE} bytes")
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _parquet_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with _open(table) as opened, parquet.ParquetFile(opened) as file:
            _check_columns(file.schema_arrow.names, str(table))
            _check_parquet(file.metadata, os.fstat(opened.fileno()).st_size, table)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} is damaged or no Parquet file: {error}") from None


def _check_parquet(metadata: Any, size: int, table: Path) -> None:
    """Refused where columns say that they unpack to far more than the file's bytes could hold."""
    advice = "if this is meant, write it again in smaller row groups"
    for group in range(metadata.num_row_groups):
        budget = Budget.of_packed(size, str(table), advice)
        for column in range(metadata.num_columns):
            described = metadata.row_group(group).column(column)
            unpacked = max(described.total_uncompressed_size, 8 * described.num_values)
            budget.claim(unpacked, f"column {described.path_in_schema!r}")
