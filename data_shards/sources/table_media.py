"""Cells of a table that name files of sound or pictures, which are stored as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from core.file_access.regular_files import open_regular_file
from core.names import suggest
from data_shards.extract.extractors.protocol import SOUND_RATE
from data_shards.extract.media import Unreadable
from data_shards.extract.recipe import ExtractionRecipe
from data_shards.media.media_kinds import SOUND, Media, MediaMember, suffix_of
from data_shards.media.member_codec import MEMBER_LIMITS, decode_member
from data_shards.shards.manifest import DataError
from data_shards.shards.sentiment_schema import MODALITY, TEXT
from data_shards.sources.table_arrays import existing_file
from data_shards.sources.table_rows import Row

RAW = "raw"  # the extractor that stores sound and pictures as they are


def media_of_recipe(recipe: ExtractionRecipe | None) -> dict[str, Media]:
    """The columns of files in a table that ``concord extract`` has made."""
    media = {}
    for record in recipe.extractors if recipe else ():
        if record.name != RAW:
            continue
        if record.frame_rate == SOUND_RATE:
            media[record.modality] = SOUND
        else:
            side = int(record.options["side"])
            media[record.modality] = Media("pictures", record.frame_rate, side)
    return media


def check_media_columns(media: Mapping[str, Media], columns: Collection[str], table: Path) -> None:
    """DataError unless the table has all columns that are said to be media, under good names."""
    for column in media:
        if column not in columns:
            raise DataError(
                f"{table} has no column {column!r} with files; it has {', '.join(sorted(columns))}"
                f"{suggest(column, columns)}"
            )
        if not MODALITY.fullmatch(column) or column == TEXT:
            raise DataError(f"{table}: {column!r} cannot be the name of sound or pictures")


def file_of_media(folder: Path, row: Row, column: str) -> Path:
    """The file that a cell names, inside the table's folder."""
    name = str(row.cells[column])
    if "\0" in name:
        raise DataError(f"{row.describe(column)}: {name!r} cannot be the name of a file")
    return existing_file(folder, name, row.describe(column))


def media_bytes(folder: Path, row: Row, column: str) -> np.ndarray:
    """What the file holds that a cell names, (n,) uint8."""
    path = file_of_media(folder, row, column)
    with open_regular_file(path) as file:
        body = file.read(MEMBER_LIMITS.bytes + 1)
    if len(body) > MEMBER_LIMITS.bytes:
        raise DataError(
            f"{row.describe(column)}: {path.name} has more than {MEMBER_LIMITS.bytes} bytes; cut "
            "the clip into windows with: python -m data_shards.extract CLIPS --windows SECONDS"
        )
    return np.frombuffer(body, np.uint8)


def read_media(folder: Path, row: Row, column: str, media: Media) -> tuple[np.ndarray, MediaMember]:
    """The file that a cell names, as its bytes (n,) uint8, and what becomes of it.

    It is decoded once here, so that what cannot be decoded never comes into a shard.
    """
    stored = media_bytes(folder, row, column)
    body = stored.tobytes()
    try:
        length = len(decode_member(body, media))
    except Unreadable as reason:
        raise DataError(
            f"{row.describe(column)}: {row.cells[column]} cannot be decoded: {reason}; correct the "
            "file, or leave the cell empty"
        ) from None
    return stored, MediaMember(suffix_of(body), length)
