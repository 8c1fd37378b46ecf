"""What ``concord extract`` and ``concord predict`` are given: a clip, a folder of clips, or a table of
clips."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from core.command import Refused
from core.file_access.regular_files import read_regular_text
from data_shards.extract.clip import ClipSource
from data_shards.extract.extractors.protocol import Word
from data_shards.shards.manifest import DataError
from data_shards.shards.single_values import shown
from data_shards.sources.table_rows import Row, parse_json, read_rows

TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")
# What a file of a folder ends in to be taken for a clip.
MEDIA = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .wmv .flv .3gp .ogv "
    ".wav .mp3 .m4a .aac .flac .ogg .oga .opus .wma .aif .aiff".split()
)
TRANSCRIPT = ".txt"  # the transcript of clip.mp4 lies in clip.txt
# Columns that say where a clip is and what is said in it; others are kept as they are.
CLIP_COLUMNS = ("id", "file", "start", "end", "transcript", "text", "words")
LONGEST_TRANSCRIPT = 1 << 20  # bytes
MOST_WORDS = 1_000_000


@dataclass(frozen=True)
class ClipRow:
    """A clip, and what else is known of it."""

    clip: ClipSource
    cells: dict[str, Any] = field(default_factory=dict)  # split, label, class, video, notes
    where: str = ""  # for messages


def find_clips(source: Path, root: Path | None = None) -> Iterator[ClipRow]:
    """The clips of a file, a folder or a table, in the order of the table or of their names.

    Args:
        root: the folder that the files of a table are named relative to, if not the table's own.

    Raises:
        Refused: there is none, two have one id, or a row cannot be read; the message says where.
    """
    if source.is_dir():
        rows = _in_folder(source)
    elif source.suffix.lower() in TABLES:
        rows = _in_table(source, root or source.parent)
    elif not source.exists():
        raise Refused(f"{source} does not exist; give a clip, a folder of clips, or a table")
    else:
        rows = iter([ClipRow(_with_transcript(source, source.stem), where=str(source))])
    known: set[bytes] = set()  # short digests: there may be more ids than fit
    for row in rows:
        digest = blake2b(row.clip.id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in known:
            raise Refused(f"{row.where}: another clip has the id {row.clip.id!r}; rename one")
        known.add(digest)
        yield row
    if not known:
        raise Refused(
            f"{source} holds no clips; known are files that end in {', '.join(sorted(MEDIA))}"
        )


def _in_folder(folder: Path) -> Iterator[ClipRow]:
    """Clips in a folder and below; an id is the path without what the file's name ends in."""
    paths = []
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in MEDIA and not is_hidden:
            paths.append(path)
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        yield ClipRow(_with_transcript(path, name), where=str(path))


def _with_transcript(path: Path, name: str) -> ClipSource:
    """A whole file as a clip, with the transcript that lies beside it, if one does."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(f"{path!s:.200}: its name is not UTF-8; rename the file") from None
    beside = path.with_suffix(TRANSCRIPT)
    transcript = ""
    if beside.is_file():
        transcript = " ".join(read_regular_text(beside, LONGEST_TRANSCRIPT).split())
    return ClipSource(name, path, transcript=transcript)


def _in_table(table: Path, root: Path) -> Iterator[ClipRow]:
    for row in read_rows(table, needed=("id", "file")):
        cells = {name: value for name, value in row.cells.items() if name not in CLIP_COLUMNS}
        start = _seconds(row, "start") or 0.0
        end = _seconds(row, "end")
        if end is not None and end <= start:
            raise DataError(f"{row.where}: ends at {end:g} s and starts at {start:g} s")
        clip = ClipSource(
            id=row.id,
            file=_file(row, root),
            start=start,
            end=end,
            transcript=_transcript(row),
            words=_words(row),
        )
        yield ClipRow(clip, cells, row.where)


def _file(row: Row, root: Path) -> Path:
    """The clip's file, which must lie in ``root`` or below."""
    name = str(row.cells["file"])
    if "\0" in name:
        raise DataError(f"{row.describe('file')}: {shown(name)} cannot be the name of a file")
    path = root / name
    # links that lead in a circle are no fault of the table: the clip is unreadable, others go on
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"{row.describe('file')}: {shown(name)} lies outside of {root}; name files relative to "
            "the table, or say with --root where they are"
        )
    return path


def _seconds(row: Row, column: str) -> float | None:
    if column not in row.cells:
        return None
    seconds = row.number(column)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise DataError(f"{row.describe(column)}: {seconds} is no time in seconds")
    return seconds


def _transcript(row: Row) -> str:
    """The words of a clip, from the column transcript or text."""
    if "transcript" in row.cells and "text" in row.cells:
        raise DataError(f"{row.where}: has a transcript and a text; leave one of them out")
    return str(row.cells.get("transcript", row.cells.get("text", "")))


def _words(row: Row) -> tuple[Word, ...]:
    """Words with times, as a list of [word, start, end] in JSON."""
    if "words" not in row.cells:
        return ()
    where = row.describe("words")
    value = row.cells["words"]
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list) or len(value) > MOST_WORDS:
        raise DataError(f'{where}: {shown(value)} is no list such as [["well", 0.1, 0.4]]')
    return tuple(_word(item, where) for item in value)


def _word(item: Any, where: str) -> Word:
    is_triple = isinstance(item, list) and len(item) == 3 and isinstance(item[0], str)
    if is_triple and all(type(time) in (int, float) for time in item[1:]):
        start, end = float(item[1]), float(item[2])
        if 0 <= start <= end < math.inf:
            return Word(item[0], start, end)
    raise DataError(f"{where}: {shown(item)} is no [word, start, end] with times in seconds")
