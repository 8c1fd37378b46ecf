"""The open layout for everybody's data: a table (CSV, JSON lines, Parquet) that points to arrays. See docs/data.md.

Tables are read row by row and ``.npy`` files are mapped, so neither has to fit into memory. A table is gone through
twice: first every row is checked, then samples are made.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.shards.manifest import DataError, Field, Labels, Sample
from data_shards.sources.base import (
    KNOWN_LABELS,
    SPLITS,
    Options,
    Source,
    as_frames,
    check_label,
    check_width,
    file_facts,
    finite,
    known_resolution,
)
from data_shards.sources.tokens import Tokenizer, from_bert, text_kind

FEATURES = "text_features"  # the column whose arrays become the field "text"
PLAIN = {
    "id",
    "split",
    "label",
    "class",
    "text",
    "video",
    "tokens",
}  # columns that never point to frames
LONGEST_CELL = 1 << 24
_REFERENCE = re.compile(r"(.+?\.np[yz])(?:#([^\[\]]+))?(?:\[(\d+)(:\d+)?\])?")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

Row = dict[str, Any]  # column -> value, empty ones left out; "" -> where it stands


@dataclass(frozen=True)
class Content:
    """What the first pass found out about a table."""

    folder: Path
    labels: Labels
    text: str  # "tokens", "features", "tokenize" or "none"
    modalities: dict[str, str]  # column -> field
    views: list[str]  # columns of unimodal labels
    fields: dict[str, Field]
    tokenizer: Tokenizer | None


def read(raw: Path, options: Options) -> Source:
    """A table, every row of it checked; arrays are opened later."""
    survey = _Survey(raw)
    for row in rows(raw):
        survey.add(row)
    if not survey.counts:
        raise DataError(f"{raw} holds no rows")
    kind = text_kind(
        options, str(raw), ids="tokens", raw="text", features=FEATURES, has=survey.columns
    )
    tokenizer = Tokenizer(options.tokenizer, options.max_tokens) if options.tokenizer else None
    labels = survey.labels(options)
    modalities = {column: column for column in survey.first if column != FEATURES}
    fields = {"text": Field("int32", (None,))} if kind in ("tokens", "tokenize") else {}
    if kind == "features":
        modalities = {FEATURES: "text"} | modalities
    for column, field in modalities.items():
        row = survey.first[column]
        fields[field] = Field(
            "float32", (None, as_frames(_load(raw.parent, row, column), _at(row, column)).shape[1])
        )
    views = sorted(column for column in survey.columns if column.startswith("label_"))
    fields |= (
        {"class": Field("int64", ())}
        if labels.kind == "classes"
        else {"label": Field("float32", ())}
    )
    fields |= {view: Field("float32", ()) for view in views}
    content = Content(raw.parent, labels, kind, modalities, views, fields, tokenizer)
    given = from_bert("", 0, survey.largest_token) if kind == "tokens" else None
    return Source(
        name=options.name or options.dataset or raw.stem,
        task="sentiment",
        fields=fields,
        labels=labels,
        counts={
            split: survey.counts[split]
            for split in ("train", "valid", "test")
            if survey.counts[split]
        },
        rows=partial(_split_rows, raw),
        sample=partial(_sample, content),
        facts=file_facts(raw) | {"layout": "table", "dataset": options.dataset},
        stamp=partial(_stamp, raw.parent),
        tokenizer=tokenizer.facts if tokenizer else given,
    )


def rows(table: Path) -> Iterator[Row]:
    """The rows of a table as dicts without their empty cells; ``row[""]`` says where the row stands."""
    kind = table.suffix.lower()
    reader = {".csv": _csv_rows, ".parquet": _parquet_rows}.get(kind, _json_rows)
    for number, cells in reader(table):
        where = f"{table}, {'row' if kind == '.parquet' else 'line'} {number}"
        row = {
            str(name): value for name, value in cells.items() if value is not None and value != ""
        }
        if "id" not in row or "split" not in row:
            missing = "id" if "id" not in row else "split"
            raise DataError(
                f"{where}: no {missing!r}; every row needs an id and a split (docs/data.md)"
            )
        row["id"] = str(row["id"])
        yield row | {"": f"{where} ({row['id']!r})"}


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LONGEST_CELL)
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for cells in reader:
                if None in cells or None in cells.values():
                    raise DataError(
                        f"{table}, line {reader.line_num}: not as many cells as the header has columns"
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
                    f"{table}, line {number}: a {type(cells).__name__}, not an object with named values"
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


class _Survey:
    """Checks rows one by one and remembers what holds for all."""

    def __init__(self, table: Path):
        self.table = table
        self.counts: Counter[str] = Counter()
        self.columns: set[str] = set()
        self.first: dict[str, Row] = {}  # modality column -> the first row that has it
        self.values: Counter[float] = Counter()
        self.classes: set[str] = set()
        self.largest_token = 0
        self._ids: set[bytes] = set()

    def add(self, row: Row) -> None:
        digest = blake2b(row["id"].encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._ids:
            raise DataError(f"{row['']}: this id is already in the table; ids must be unique")
        self._ids.add(digest)
        if row["split"] not in SPLITS:
            raise DataError(f"{row['']}: split {row['split']!r} is none of {', '.join(SPLITS)}")
        self.counts[SPLITS[row["split"]]] += 1
        self.columns |= row.keys()
        if ("label" in row) == ("class" in row):
            raise DataError(f"{row['']}: needs either a label or a class")
        if "class" in row:
            self.classes.add(str(row["class"]))
        else:
            self.values[_number(row, "label")] += 1
        if "tokens" in row:
            self.largest_token = max(
                self.largest_token, int(_tokens(self.table.parent, row).max(initial=0))
            )
        for column, value in row.items():
            known = column in self.first
            if known or (
                column not in PLAIN and isinstance(value, str) and _REFERENCE.fullmatch(value)
            ):
                _resolve(self.table.parent, row, column)
                if not known:
                    if not _NAME.fullmatch(column) or column.startswith("label"):
                        raise DataError(f"{row['']}: {column!r} cannot be the name of a modality")
                    self.first[column] = row

    def labels(self, options: Options) -> Labels:
        if self.classes:
            if self.values:
                raise DataError(
                    f"{self.table}: some rows have a label and others a class; give one of them to all"
                )
            if options.labels or options.dataset:
                raise DataError(
                    f"{self.table} has classes, so --labels and --dataset have no effect; leave them out"
                )
            whole = all(name.lstrip("-").isdigit() for name in self.classes)
            names = sorted(self.classes, key=int) if whole else sorted(self.classes)
            return Labels(
                kind="classes", low=0.0, high=float(max(1, len(names) - 1)), names=tuple(names)
            )
        if options.labels:
            return options.labels
        if options.dataset:
            return known_resolution(
                KNOWN_LABELS[options.dataset], np.array(list(self.values.elements()))
            )
        low, high = min(self.values), max(self.values)
        raise DataError(
            f"{self.table}: the label range is not known (labels are from {low:g} to {high:g}); "
            f"add --labels LOW:HIGH[:STEP], or --dataset {'|'.join(KNOWN_LABELS)}"
        )


def _at(row: Row, column: str) -> str:
    return f"{row['']}: {column}"


def _number(row: Row, column: str) -> float:
    try:
        return float(row[column])
    except (TypeError, ValueError):
        raise DataError(f"{_at(row, column)}: {row[column]!r} is no number") from None


def _split_rows(table: Path) -> Iterator[tuple[str, Row]]:
    for row in rows(table):
        yield SPLITS[row["split"]], row


def _stamp(folder: Path, row: Row) -> str:
    """Changes when the row does, or a file that it points to."""
    files = []
    for column, value in row.items():
        if (
            (column == "tokens" or column not in PLAIN)
            and isinstance(value, str)
            and _REFERENCE.fullmatch(value)
        ):
            status = _resolve(folder, row, column)[0].stat()
            files.append(f"{column} {status.st_size} {status.st_mtime_ns}")
    return " ".join([row["id"], *files])


def _sample(content: Content, row: Row, repairs: Counter[str]) -> Sample:
    arrays: dict[str, np.ndarray] = {}
    if content.text == "tokens" and "tokens" in row:
        arrays["text"] = _tokens(content.folder, row)
    elif content.text == "tokenize" and content.tokenizer and "text" in row:
        arrays["text"] = content.tokenizer.encode(str(row["text"]), repairs)
    for column, field in content.modalities.items():
        if column in row:
            frames = as_frames(_load(content.folder, row, column), _at(row, column))
            check_width(frames, content.fields[field], _at(row, column))
            arrays[field] = finite(frames, field, repairs)
    arrays = {field: array for field, array in arrays.items() if len(array)}
    if content.labels.kind == "classes":
        arrays["class"] = np.array(content.labels.names.index(str(row["class"])), "<i8")
    else:
        arrays["label"] = np.array(
            check_label(row["label"], content.labels, _at(row, "label")), "<f4"
        )
    for view in content.views:
        if view in row:
            arrays[view] = np.array(check_label(row[view], content.labels, _at(row, view)), "<f4")
    used = {
        "",
        "id",
        "split",
        "label",
        "class",
        "text",
        "tokens",
        FEATURES,
        *content.modalities,
        *content.views,
    }
    extra = {column: value for column, value in row.items() if column not in used}
    text = str(row["text"]) if "text" in row else None
    return Sample(
        row["id"],
        {field: arrays[field] for field in content.fields if field in arrays},
        text,
        extra,
    )


def _tokens(folder: Path, row: Row) -> np.ndarray:
    """Token ids as (T,) int32, from a list, a list written as JSON, or an array file."""
    value = row["tokens"]
    if isinstance(value, str):
        try:
            value = (
                _load(folder, row, "tokens") if _REFERENCE.fullmatch(value) else json.loads(value)
            )
        except (json.JSONDecodeError, RecursionError):
            raise DataError(
                f"{_at(row, 'tokens')}: neither a list of token ids nor an array file"
            ) from None
    ids = np.asarray(value)
    if (
        ids.ndim != 1
        or ids.dtype.kind not in "iu"
        or (len(ids) and not 0 <= ids.min() <= ids.max() < 2**31)
    ):
        raise DataError(
            f"{_at(row, 'tokens')}: token ids must be a list of whole numbers from 0, got {value!r:.80}"
        )
    return ids.astype("<i4")


def _resolve(folder: Path, row: Row, column: str) -> tuple[Path, str | None, slice | int | None]:
    """File, key and part that a reference names; the file must lie inside the table's folder."""
    match = _REFERENCE.fullmatch(str(row[column]))
    if match is None:
        raise DataError(
            f"{_at(row, column)}: {row[column]!r} is neither FILE.npy nor FILE.npz#KEY (docs/data.md)"
        )
    name, key, start, stop = match.groups()
    if name.endswith(".npz") != (key is not None):
        hint = "an .npz needs a #KEY" if key is None else "an .npy has no keys"
        raise DataError(f"{_at(row, column)}: {row[column]!r}: {hint}")
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(
            f"{_at(row, column)}: {name!r} lies outside the table's folder; move it there"
        )
    if not path.is_file():
        raise DataError(f"{_at(row, column)}: there is no file {name!r} in {folder}")
    part = (
        None if start is None else int(start) if stop is None else slice(int(start), int(stop[1:]))
    )
    return path, key, part


def _load(folder: Path, row: Row, column: str) -> np.ndarray:
    """The array that a cell points to."""
    path, key, part = _resolve(folder, row, column)
    status = path.stat()
    try:
        whole = _open(path, key, status.st_size, status.st_mtime_ns)
    except KeyError:
        raise DataError(f"{_at(row, column)}: {path.name} has no key {key!r}") from None
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
    ) as error:
        raise DataError(f"{_at(row, column)}: cannot read {path.name}: {error}") from None
    if part is None:
        return whole
    if whole.ndim == 0 or (part.stop if isinstance(part, slice) else part + 1) > len(whole):
        raise DataError(
            f"{_at(row, column)}: {row[column]!r} points past the end of an array of shape {whole.shape}"
        )
    return whole[part]


@lru_cache(maxsize=8)
def _open(path: Path, key: str | None, size: int, changed: int) -> np.ndarray:
    """The last few arrays stay open: rows that share one mostly follow each other. ``.npy`` files are only mapped."""
    if key is None:
        return np.lib.format.open_memmap(path, mode="r")
    with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
        return arrays[key]
