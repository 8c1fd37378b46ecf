"""A table as something to score: the layout of docs/data.md without labels, or clips by ``file``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from core.command import Refused
from core.files import sha256_of_file
from data_shards.extract.windows import Windows
from data_shards.shards.split_names import split_called
from data_shards.sources.table import FEATURES, column_frames
from data_shards.sources.table_arrays import load_token_ids
from data_shards.sources.table_media import media_bytes
from data_shards.sources.table_rows import Row, read_rows
from launch.predicting.input_kinds import Item, ItemInput
from launch.predicting.samples import NewSample, SampleMaker

FILE = "file"  # the column of clips


def table_input(
    maker: SampleMaker,
    table: Path,
    *,
    split: str | None = None,
    windows: Windows | None = None,
    folders: Mapping[str, str] | None = None,
) -> ItemInput:
    """The rows of a table, all of them or those of one split.

    Raises:
        Refused: an id is there twice, no column is one that the model reads.
    """
    columns, count = _survey(table, split)
    if FILE in columns:
        from launch.predicting.clip_input import clip_input  # needs the packages of clips

        return clip_input(maker, table, split=split, windows=windows, folders=folders)
    if windows is not None:
        raise Refused(f"--windows: {table} has no column {FILE!r} of clips; leave it out")
    missing = _missing_columns(maker, table, columns)
    notes = [f"{table} has no column for {name}" for name in missing]

    def items() -> Iterator[Item]:
        for row in _rows(table, split):
            yield Item(row.id, _making(maker, table.parent, row))

    return ItemInput(maker, items, {"table": sha256_of_file(table), "split": split}, count, notes)


def _rows(table: Path, split: str | None) -> Iterator[Row]:
    for row in read_rows(table, needed=("id",)):
        if split is None or split_called(row.split) == split:
            yield row


def _survey(table: Path, split: str | None) -> tuple[set[str], int]:
    """The columns that are not empty, and how many rows there are."""
    columns: set[str] = set()
    known: set[bytes] = set()  # short digests: a table may have more ids than fit
    for row in _rows(table, split):
        digest = blake2b(row.id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in known:
            raise Refused(f"{row.where}: this id is already in the table; ids must be unique")
        known.add(digest)
        columns |= row.cells.keys()
    if not known:
        of_split = f" of split {split!r}" if split else ""
        raise Refused(f"{table} holds no rows{of_split}")
    return columns, len(known)


def _missing_columns(maker: SampleMaker, table: Path, columns: set[str]) -> list[str]:
    """Fields that no column holds; Refused where that is all of them."""
    missing = []
    for name in maker.wanted:
        if not _columns_of(maker, name) & columns:
            missing.append(name)
    if len(missing) == len(maker.wanted):
        wanted = ", ".join(maker.wanted)
        raise Refused(
            f"{table} has none of the columns that {maker.trained.source} reads ({wanted}), and no "
            f"{FILE!r} of clips; it has {', '.join(sorted(columns))}"
        )
    return missing


def _columns_of(maker: SampleMaker, name: str) -> set[str]:
    """The columns that may hold a field."""
    if name != maker.text_field:
        return {name}
    reads_features = bool(maker.trained.data.features["text"])
    return {FEATURES} if reads_features else {"tokens", "text"}


def _making(maker: SampleMaker, folder: Path, row: Row) -> Callable[[], NewSample]:
    def make() -> NewSample:
        arrays: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        for name in maker.wanted:
            if name == maker.text_field:
                notes = _add_text(maker, folder, row, name, arrays)
            elif name in row.cells:
                is_media = maker.fields[name].media is not None
                read = media_bytes if is_media else column_frames
                frames = read(folder, row, name)
                if len(frames):
                    arrays[name] = maker.check(name, frames, row.where)
        return NewSample(row.id, arrays, notes, str(row.cells.get("text", "")))

    return make


def _add_text(
    maker: SampleMaker, folder: Path, row: Row, name: str, arrays: dict[str, Any]
) -> tuple[str, ...]:
    """The text of a row, as the model reads it, into ``arrays``; what was done to it."""
    if maker.trained.data.features["text"]:
        if FEATURES in row.cells:
            frames = column_frames(folder, row, FEATURES)
            if len(frames):
                arrays[name] = maker.check(name, frames, row.where)
        return ()
    if "tokens" in row.cells:
        ids = load_token_ids(folder, row)
        if len(ids):
            arrays[name] = maker.check(name, ids, row.where)
        return ()
    if "text" not in row.cells:
        return ()
    arrays[name], notes = maker.encode(str(row.cells["text"]), row.where)
    return notes
