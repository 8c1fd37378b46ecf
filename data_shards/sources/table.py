"""The open layout for everybody's data: a table (CSV, JSON lines, Parquet) that points to arrays.
See docs/data.md.

Tables are read row by row and ``.npy`` files are mapped, so neither has to fit into memory. A table
is gone through twice: first every row is checked, then samples are made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.extract.recipe import read_recipe
from data_shards.media.media_kinds import Media, MediaMember
from data_shards.shards.label_statistics import known_resolution, named_classes
from data_shards.shards.manifest import DataError, Field, Labels, Sample
from data_shards.shards.sentiment_schema import MODALITY, check_label
from data_shards.shards.single_values import shown
from data_shards.shards.split_names import SPLIT_NAMES, SPLITS, split_called
from data_shards.sources.raw_dataset import (
    Options,
    RawDataset,
    as_frames,
    check_width,
    file_facts,
    finite,
    stated_labels,
)
from data_shards.sources.table_arrays import is_reference, load_array, load_token_ids, resolve
from data_shards.sources.table_media import (
    check_media_columns,
    file_of_media,
    media_of_recipe,
    read_media,
)
from data_shards.sources.table_rows import Row, read_rows
from data_shards.sources.table_targets import target_values, target_vector
from data_shards.sources.tokens import TextKind, Tokenizer, chosen_text, from_bert

FEATURES = "text_features"  # the column whose arrays become the field "text"
# Columns that never point to frames.
PLAIN = {"id", "split", "label", "class", "text", "video", "tokens"}
_FIELD = re.compile(r"[A-Za-z0-9_-]+")
_NUMBER = re.compile(r"-?[0-9]{1,18}")  # classes that are sorted by their value


@dataclass(frozen=True)
class Content:
    """What the first pass found out about a table."""

    folder: Path
    labels: Labels
    text: TextKind
    modalities: dict[str, str]  # column -> field
    views: list[str]  # columns of unimodal labels
    fields: dict[str, Field]
    tokenizer: Tokenizer | None
    media: dict[str, Media]  # column of files -> what they hold

    def used_columns(self) -> set[str]:
        """The columns that become part of a sample; others are kept as they stand in the table."""
        named = {"id", "split", "label", "class", "text", "tokens", FEATURES}
        targets = self.labels.names if self.labels.kind == "regression" else ()
        frames = self.modalities.keys() | self.media.keys()
        return named | frames | set(self.views) | set(targets)


def read(raw: Path, options: Options) -> RawDataset:
    """A table, every row of it checked; arrays are opened later."""
    recipe = read_recipe(raw.parent)
    media = (options.media or {}) | media_of_recipe(recipe)
    survey = _Survey(raw, options.targets or (), media)
    for row in read_rows(raw):
        survey.add(row)
    if not survey.counts:
        raise DataError(f"{raw} holds no rows")
    text, tokenizer = chosen_text(
        options, str(raw), ids="tokens", raw="text", features=FEATURES, has=survey.columns
    )
    labels = survey.labels(options)
    # a modality of which nobody has a frame is none
    known = [column for column, width in survey.widths.items() if width]
    modalities = {column: column for column in known if column != FEATURES}
    if text == "features":
        if FEATURES not in known:
            raise DataError(
                f"{raw}: no cell of {FEATURES!r} points to an array (FILE.npy or FILE.npz#KEY), "
                "which --text features needs (docs/data.md)"
            )
        modalities = {FEATURES: "text"} | modalities
    views = sorted(column for column in survey.columns if column.startswith("label_"))
    check_media_columns(media, survey.columns, raw)
    fields = _fields(survey, text, modalities, labels, views)
    content = Content(raw.parent, labels, text, modalities, views, fields, tokenizer, media)
    tokenizer_facts = tokenizer.facts if tokenizer else None
    if text == "tokens":
        tokenizer_facts = from_bert("", 0, survey.largest_token)
    return RawDataset(
        name=options.name or options.dataset or raw.stem,
        task="sentiment",
        fields=fields,
        labels=labels,
        counts={split: survey.counts[split] for split in SPLITS if survey.counts[split]},
        rows=partial(_split_rows, raw),
        sample=partial(_sample, content),
        facts=file_facts(raw) | {"layout": "table", "dataset": options.dataset},
        stamp=partial(_stamp, raw.parent, media),
        tokenizer=tokenizer_facts,
        extraction=recipe,
    )


class _Survey:
    """Checks rows one by one and remembers what holds for all."""

    def __init__(self, table: Path, targets: tuple[str, ...], media: dict[str, Media]):
        self.table = table
        self.media = media
        self.targets = targets
        self.folder = table.parent
        self.counts: Counter[str] = Counter()  # split -> rows
        self.columns: set[str] = set()
        self.widths: dict[str, int] = {}  # modality column -> features; 0 as long as not known
        self.label_values: Counter[float] = Counter()
        self.classes: set[str] = set()
        self.largest_token = 0
        self._ids: set[bytes] = set()  # short digests: a table may have more ids than fit

    def add(self, row: Row) -> None:
        """Check one row; DataError with its place for what is wrong."""
        digest = blake2b(row.id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._ids:
            raise DataError(f"{row.where}: this id is already in the table; ids must be unique")
        self._ids.add(digest)
        split = split_called(row.split)
        if split is None:
            raise DataError(
                f"{row.where}: split {shown(row.split)} is none of {', '.join(SPLIT_NAMES)}"
            )
        self.counts[split] += 1
        self.columns |= row.cells.keys()
        self._add_label(row)
        if "tokens" in row.cells:
            largest = int(load_token_ids(self.folder, row).max(initial=0))
            self.largest_token = max(self.largest_token, largest)
        for column, value in row.cells.items():
            if column.startswith("label_"):
                _check_field_name(row, column)
            if column in self.media:
                file_of_media(self.folder, row, column)
                continue
            self._add_frames(row, column, value)

    def _add_label(self, row: Row) -> None:
        if self.targets:
            self.label_values.update(target_values(row, self.targets))
            return
        if ("label" in row.cells) == ("class" in row.cells):
            raise DataError(f"{row.where}: needs either a label or a class")
        if "class" in row.cells:
            self.classes.add(str(row.cells["class"]))
        else:
            self.label_values[row.number("label")] += 1

    def _add_frames(self, row: Row, column: str, value: Any) -> None:
        """A column is a modality from the first cell on that points to an array."""
        is_known = column in self.widths
        is_new = column not in PLAIN and is_reference(value)
        if not is_known and not is_new:
            return
        if is_new and not is_known and not MODALITY.fullmatch(column):
            raise DataError(
                f"{row.where}: {column!r} cannot be the name of a modality; "
                "use letters, digits, '_' and '-', and a letter first"
            )
        if self.widths.get(column):
            if not _is_no_frames(value):
                resolve(self.folder, row, column)
            return
        self.widths[column] = column_frames(self.folder, row, column).shape[1]

    def labels(self, options: Options) -> Labels:
        """What the labels of the whole table mean."""
        if self.classes:
            return self._class_labels(options)
        low, high = min(self.label_values), max(self.label_values)
        seen = f" (labels are from {low:g} to {high:g})"
        labels = stated_labels(self.table, options, options.dataset, seen)
        labels = known_resolution(labels, np.array(list(self.label_values.elements())))
        return replace(labels, names=self.targets)

    def _class_labels(self, options: Options) -> Labels:
        if self.label_values:
            raise DataError(
                f"{self.table}: some rows have a label and others a class; give one of them to all"
            )
        if options.labels or options.dataset:
            raise DataError(
                f"{self.table} has classes, so --labels and --dataset have no effect; "
                "leave them out"
            )
        are_numbers = all(_NUMBER.fullmatch(name) for name in self.classes)
        names = sorted(self.classes, key=int) if are_numbers else sorted(self.classes)
        return named_classes(names)


def _fields(
    survey: _Survey,
    text: TextKind,
    modalities: dict[str, str],
    labels: Labels,
    views: list[str],
) -> dict[str, Field]:
    """The fields of the data set."""
    fields: dict[str, Field] = {}
    if text in ("tokens", "tokenize"):
        fields["text"] = Field("int32", (None,))
    for column, field in modalities.items():
        fields[field] = Field("float32", (None, survey.widths[column]))
    for column, media in survey.media.items():
        fields[column] = Field("uint8", (None,), media)
    if labels.kind == "classes":
        fields["class"] = Field("int64", ())
    else:
        fields["label"] = Field("float32", (len(labels.names),) if labels.names else ())
    for view in views:
        fields[view] = Field("float32", ())
    return fields


def column_frames(folder: Path, row: Row, column: str) -> np.ndarray:
    """The frames that a cell points to, (T, D); none where it says that there are none."""
    if _is_no_frames(row.cells[column]):
        return as_frames(None, row.describe(column))
    return as_frames(load_array(folder, row, column), row.describe(column))


def _is_no_frames(value: Any) -> bool:
    """Whether a cell of a modality is an empty list, itself or as text."""
    return value == [] or (isinstance(value, str) and value.strip() == "[]")


def _check_field_name(row: Row, column: str) -> None:
    """DataError unless a column can become a field of shards."""
    if not _FIELD.fullmatch(column):
        raise DataError(
            f"{row.where}: {column!r} cannot be the name of a label; "
            "use letters, digits, '_' and '-'"
        )


def _split_rows(table: Path) -> Iterator[tuple[str, Row]]:
    for row in read_rows(table):
        split = split_called(row.split)
        if split is not None:  # else the survey has refused the table
            yield split, row


def _stamp(folder: Path, media: dict[str, Media], row: Row) -> str:
    """Changes when the row does, or a file that it points to."""
    stamps = [row.id]
    for column, value in row.cells.items():
        may_point = column == "tokens" or column not in PLAIN
        is_media = column in media
        if is_media or (may_point and is_reference(value)):
            path = file_of_media(folder, row, column) if is_media else None
            status = (path or resolve(folder, row, column).path).stat()
            stamps.append(f"{column} {status.st_size} {status.st_mtime_ns}")
    return " ".join(stamps)


def _sample(content: Content, row: Row, repairs: Counter[str]) -> Sample:
    cells = row.cells
    text = str(cells["text"]) if "text" in cells else None
    arrays: dict[str, np.ndarray] = {}
    if content.text == "tokens" and "tokens" in cells:
        arrays["text"] = load_token_ids(content.folder, row)
    elif content.text == "tokenize" and content.tokenizer and text is not None:
        arrays["text"] = content.tokenizer.encode(text, repairs)
    for column, field in content.modalities.items():
        if column in cells:
            frames = column_frames(content.folder, row, column)
            check_width(frames, content.fields[field], row.describe(column))
            arrays[field] = finite(frames, field, repairs)
    # a sequence without frames is a modality that the sample lacks
    arrays = {field: array for field, array in arrays.items() if len(array)}
    if content.labels.kind == "classes":
        number = content.labels.names.index(str(cells["class"]))
        arrays["class"] = np.array(number, "<i8")
    elif content.labels.names:
        arrays["label"] = target_vector(row, content.labels)
    else:
        arrays["label"] = _label(content, row, "label")
    for view in content.views:
        if view in cells:
            arrays[view] = _label(content, row, view)
    members: dict[str, MediaMember] = {}
    for column, media in content.media.items():
        if column in cells:
            arrays[column], members[column] = read_media(content.folder, row, column, media)
    used = content.used_columns()
    extra = {column: value for column, value in cells.items() if column not in used}
    in_order = {field: arrays[field] for field in content.fields if field in arrays}
    return Sample(row.id, in_order, text, extra, members)


def _label(content: Content, row: Row, column: str) -> np.ndarray:
    label = check_label(row.cells[column], content.labels, row.describe(column))
    return np.array(label, "<f4")
