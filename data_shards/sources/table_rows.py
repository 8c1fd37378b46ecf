"""The rows of a table, one at a time: CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.shards.manifest import DataError

LONGEST_CELL = 1 << 24


@dataclass(frozen=True)
class Row:
    """One row: its cells by column, empty ones left out, and where it stands, for messages."""

    id: str
    split: Any  # as it stands in the table; see split_called
    cells: dict[str, Any]  # id and split are among them
    where: str  # "table.csv, line 3 ('a')"

    def describe(self, column: str) -> str:
        """Where a cell stands, for messages."""
        return f"{self.where}: {column}"

    def number(self, column: str) -> float:
        """A cell as a number; DataError where it is none."""
        try:
            return float(self.cells[column])
        except (TypeError, ValueError):
            raise DataError(
                f"{self.describe(column)}: {self.cells[column]!r} is no number"
            ) from None


def read_rows(table: Path) -> Iterator[Row]:
    """The rows of a table; DataError for one without id or split."""
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
            if value is not None and value != "":
                filled[str(column)] = value
        for needed in ("id", "split"):
            if needed not in filled:
                raise DataError(
                    f"{where}: no {needed!r}; every row needs an id and a split (docs/data.md)"
                )
        filled["id"] = str(filled["id"])
        yield Row(filled["id"], filled["split"], filled, f"{where} ({filled['id']!r})")


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
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
    with table.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{table}, line {number}: not JSON: {error}") from None
            if not isinstance(cells, dict):
                raise DataError(
                    f"{table}, line {number}: a {type(cells).__name__}, "
                    "not an object with named values"
                )
            yield number, cells


def _parquet_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=1024):
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{table} is damaged or no Parquet file: {error}") from None
