"""What ``concord extract`` leaves: a table in the layout of docs/data.md, the recipe beside it, and a
list of what clips lack."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from core.files import atomic_file
from data_shards.extract.clip_jobs import ClipRecord, Plan, RowRecord, record_path
from data_shards.extract.clip_table import ClipRow
from data_shards.shards.manifest import DataError

TABLE = "clips.csv"
MISSING = "missing.csv"  # id, modality, reason
# Columns that this project writes; a clip's own columns may not be called so.
WRITTEN = ("seconds", "start", "end", "words")


@dataclass
class Summary:
    """What became of all clips."""

    clips: int = 0
    seconds: float = 0.0
    left_out: int = 0  # clips of which nothing is known
    missing: Counter[tuple[str, str]] = field(default_factory=Counter)  # modality, kind of reason
    has_labels: bool = True  # all of them
    has_splits: bool = True

    def add(self, record: ClipRecord, cells: dict[str, Any]) -> None:
        """Count one clip."""
        self.clips += 1
        self.seconds += record.seconds
        self.left_out += is_empty(record)
        for modality, reason in record.missing.items():
            self.missing[modality, reason.partition(":")[0]] += 1
        self.has_labels = self.has_labels and ("label" in cells or "class" in cells)
        self.has_splits = self.has_splits and "split" in cells


def is_empty(record: ClipRecord) -> bool:
    """Whether nothing at all is known of a clip; then it is left out of the table."""
    return not record.arrays and not record.transcript


def write_table(plan: Plan, rows: Iterable[ClipRow], columns: list[str]) -> Summary:
    """Write the table and the list of what is missing, from the records of all rows.

    Args:
        columns: of the clips' own table, in order.
    """
    modalities = [record.modality for record in plan.recipe.extractors if record.width]
    names = ["id", *columns, "text", *modalities, *WRITTEN]
    summary = Summary()
    with (
        atomic_file(plan.out / MISSING) as missing_file,
        atomic_file(plan.out / TABLE) as table_file,
    ):
        missing = _writer(missing_file, ["id", "modality", "reason"])
        table = _writer(table_file, names)
        for row in rows:
            record = RowRecord.load(record_path(plan, row))
            if record is None:
                raise DataError(
                    f"{record_path(plan, row)}, the record of {row.where}, is not there any more; "
                    "run the same command again"
                )
            for clip in record.clips:
                summary.add(clip, row.cells)
                for modality, reason in clip.missing.items():
                    missing.writerow({"id": clip.id, "modality": modality, "reason": reason})
                if not is_empty(clip):
                    table.writerow(_cells(row, clip))
        for file in (table, missing):
            file.flush()
    return summary


def columns_of(rows: Iterable[ClipRow], modalities: Iterable[str], cut: bool) -> list[str]:
    """Columns of the clips' own table that are kept, in the order in which they come up.

    Args:
        cut: clips are cut into windows, so the clip that they are of is kept as their video.

    Raises:
        DataError: a column is called like one that is written.
    """
    columns: dict[str, None] = {}
    taken = {*modalities, *WRITTEN, "text"}
    for row in rows:
        for column in row.cells:
            if column in taken:
                raise DataError(
                    f"{row.where}: the column {column!r} would be written over; rename it"
                )
            columns[column] = None
    if cut:
        columns["video"] = None
    return list(columns)


def _cells(row: ClipRow, clip: ClipRecord) -> dict[str, Any]:
    cells: dict[str, Any] = {column: _as_cell(value) for column, value in row.cells.items()}
    cells |= {"id": clip.id, "text": clip.transcript, "seconds": clip.seconds}
    if clip.id != row.clip.id:
        cells.setdefault("video", row.clip.id)
    cells["start"] = clip.start or ""
    cells["end"] = "" if clip.end is None else clip.end
    cells["words"] = json.dumps(clip.words, ensure_ascii=False) if clip.words else ""
    return cells | {modality: name for modality, (name, _) in clip.arrays.items()}


def _as_cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _writer:
    """Rows of a CSV in UTF-8, with a header."""

    def __init__(self, file: IO[bytes], columns: list[str]):
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._rows = csv.DictWriter(self._text, columns, restval="", lineterminator="\n")
        self._rows.writeheader()

    def writerow(self, cells: dict[str, Any]) -> None:
        self._rows.writerow(cells)

    def flush(self) -> None:
        """Leave the file to whoever opened it."""
        self._text.detach()


def lines(summary: Summary, out: Path) -> Iterator[str]:
    """What is said at the end."""
    hours = summary.seconds / 3600
    yield f"{summary.clips} clips, {hours:.2f} hours, are in {out / TABLE}"
    for (modality, reason), count in sorted(summary.missing.items()):
        yield f"missing: {modality} of {count} clips: {reason}"
    if summary.missing:
        yield f"every one is named in {out / MISSING}"
    if summary.left_out:
        yield f"WARNING: nothing is known of {summary.left_out} clips; they are not in the table"
