"""What a prediction writes: rows as they come, into a hidden file that a stopped command goes on
with, and at the end the whole result, which appears at once."""

from __future__ import annotations

import csv
import fcntl
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from core.command import Refused
from core.file_access.regular_files import open_regular_file
from core.file_access.targets import check_file
from core.files import atomic_file, naming
from launch.predicting.scorer import Answer, Scorer

KINDS = (".csv", ".jsonl", ".ndjson")
Row = dict[str, Any]


def row_of(sample_id: str, answer: Answer, notes: Iterable[str], scorer: Scorer) -> Row:
    """A row of the result, plain JSON, with the same keys for every sample."""
    row: Row = {"id": sample_id}
    names = scorer.trained.class_names
    if names:
        best = answer.best_class
        row["class"] = None if best is None else names[best]
        probabilities = answer.probabilities or (None,) * len(names)
        for name, probability in zip(names, probabilities, strict=True):
            row[f"p_{name}"] = probability
    elif scorer.targets:
        values = answer.target_scores or (None,) * len(scorer.targets)
        for name, value in zip(scorer.targets, values, strict=True):
            row[f"score_{name}"] = value
    else:
        row["score"] = answer.score
    row["seen"] = list(answer.seen)
    for name in scorer.views:
        row[f"score_{name}"] = (answer.by_modality or {}).get(name)
    row["warning"] = "; ".join([*notes, *answer.warnings]) or None
    return row


def check_result(out: Path) -> None:
    """Refuse a file that cannot be the result, before anything is opened."""
    if out.suffix.lower() not in KINDS:
        raise Refused(f"--out {out}: write a name that ends in {', '.join(KINDS)}")
    check_file(out)


class RowsFile:
    """Rows on their way to ``out``; use as a context manager, in one process.

    Args:
        identity: what the rows depend on: model, input, options. Rows of another are not gone on
            with.
    """

    def __init__(self, out: Path, identity: dict[str, Any]):
        check_result(out)
        self.out = out
        self.path = out.with_name(f".{out.name}.rows")
        self.identity = identity
        self.done = 0  # rows that are there already
        self.has_rows = False

    def __enter__(self) -> RowsFile:
        if self.path.is_symlink():
            raise Refused(f"{self.path} is a link; remove it")
        self._file: IO[bytes] = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._take_up()
        except BlockingIOError:
            self._file.close()
            raise Refused(
                f"another command is writing {self.out}; wait for it, or give another --out"
            ) from None
        except BaseException:
            self._file.close()
            raise
        return self

    def _take_up(self) -> None:
        """Count the whole rows that an earlier command left; a half one is cut off."""
        self._file.seek(0)
        header = self._file.readline()
        if not header.endswith(b"\n"):
            self._file.truncate(0)
            self._write_lines([self.identity])
            return
        if _parsed(header) != self.identity:
            raise Refused(
                f"{self.path} holds rows of another model, input or option; remove it to start "
                "again, or give another --out"
            )
        end = self._file.tell()
        for line in self._file:
            if not line.endswith(b"\n") or not isinstance(_parsed(line), dict):
                break
            end += len(line)
            self.done += 1
        self._file.truncate(end)
        self.has_rows = self.done > 0

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows, in the order of the result."""
        self._write_lines(rows)
        self.has_rows = True

    def _write_lines(self, rows: Iterable[Row]) -> None:
        body = "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows)
        with naming(self.path):
            self._file.seek(0, io.SEEK_END)
            self._file.write(body.encode("ascii"))
            self._file.flush()

    def rows(self) -> Iterator[Row]:
        """All rows so far."""
        with open_regular_file(self.path) as file:
            file.readline()
            for line in file:
                yield json.loads(line)

    def finish(self) -> int:
        """Write ``out`` whole and remove the hidden file; how many rows there are."""
        count = 0
        with atomic_file(self.out) as file:
            for number, row in enumerate(self.rows()):
                file.write(as_line(row, self.out.suffix.lower(), number == 0).encode("utf-8"))
                count += 1
        self.path.unlink()
        return count

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is not None and not self.has_rows:
            self.path.unlink(missing_ok=True)  # nothing to go on with


def as_line(row: Row, suffix: str, is_first: bool) -> str:
    """A row as JSON, or as CSV with the names of the columns above the first."""
    if suffix != ".csv":
        return json.dumps(row, ensure_ascii=False) + "\n"
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(row), lineterminator="\n")
    if is_first:
        writer.writeheader()
    writer.writerow({name: _cell(value) for name, value in row.items()})
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "+".join(value)
    return "" if value is None else value


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
