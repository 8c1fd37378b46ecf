"""Clips as jobs: done by any number of processes, kept one by one, never done twice.

A clip's arrays appear whole, then its record does. After an interruption, kill -9 included, the
records tell what is done; a clip whose record agrees with its file, its row and the recipe is left
alone. A clip that makes its process die is told from others by being tried alone.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from core.file_access.regular_files import read_regular_file
from core.files import sha256_of_bytes, write_atomically
from data_shards.extract.clip import ClipSource, ExtractedClip, extract_clip, open_extractors
from data_shards.extract.clip_table import ClipRow
from data_shards.extract.extractors.registry import Extractors
from data_shards.extract.media import LIMITS, Limits
from data_shards.extract.recipe import ExtractionRecipe
from data_shards.extract.windows import Windows, windows_of
from data_shards.media.media_kinds import suffix_of
from data_shards.shards.jobs import end_with_parent

FEATURES = "features"  # folder of arrays and records, beside the table
DIED = "unreadable: the process that read it died, for lack of memory or by a fault of a library"


@dataclass(frozen=True)
class Plan:
    """What is done with every clip."""

    out: Path
    recipe: ExtractionRecipe
    windows: Windows | None = None
    limits: Limits = LIMITS


@dataclass(frozen=True)
class ClipRecord:
    """What is known of a clip, or of a window of one, after it was extracted."""

    id: str
    start: float
    end: float | None
    seconds: float
    transcript: str
    words: list[tuple[str, float, float]]
    missing: dict[str, str]
    arrays: dict[str, tuple[str, int]] = field(default_factory=dict)  # file in OUT, and its bytes


@dataclass(frozen=True)
class RowRecord:
    """A row that is done."""

    key: str  # hash of file, row and recipe
    clips: list[ClipRecord]
    is_final: bool = True  # not where a process died: the next run tries again

    @staticmethod
    def load(path: Path) -> RowRecord | None:
        """None where the record cannot be used; its row is then done again."""
        try:
            return _record_adapter().validate_json(read_regular_file(path))
        except (OSError, ValueError):
            return None

    def is_whole(self, out: Path) -> bool:
        """Whether all arrays are on disk as recorded."""
        for clip in self.clips:
            for name, size in clip.arrays.values():
                path = out / name
                if not path.is_file() or path.stat().st_size != size:
                    return False
        return True


@cache
def _record_adapter() -> TypeAdapter[RowRecord]:
    return TypeAdapter(RowRecord)


def place_of(name: str) -> str:
    """Where things of an id lie in OUT, without what their names end in."""
    digest = sha256_of_bytes(name.encode("utf-8"))[:20]
    return f"{FEATURES}/{digest[:2]}/{digest}"


def record_path(plan: Plan, row: ClipRow) -> Path:
    """Where the record of a row lies."""
    return plan.out / f"{place_of(row.clip.id)}.json"


def run_rows(
    plan: Plan, rows: Iterable[ClipRow], processes: int, extractors: Extractors, *, force: bool
) -> Iterator[RowRecord]:
    """Do all rows; yields a record for each, in any order.

    Args:
        processes: 0 for this one alone.
        extractors: opened here; other processes open their own.
        force: do finished ones again, too.
    """

    def rows_to_do() -> Iterator[ClipRow | RowRecord]:
        for row in rows:
            record = None if force else RowRecord.load(record_path(plan, row))
            is_done = (
                record is not None
                and record.is_final
                and record.key == key_of(plan, row)
                and record.is_whole(plan.out)
            )
            yield record if is_done and record is not None else row

    if processes == 0:
        for item in rows_to_do():
            yield item if isinstance(item, RowRecord) else run_row(plan, row=item, using=extractors)
        return
    yield from _run_in_processes(plan, rows_to_do(), processes)


def key_of(plan: Plan, row: ClipRow) -> str:
    """Changes when the file does, or anything that decides about its features."""
    clip = row.clip
    try:
        status = clip.file.stat()
        file_facts = [status.st_size, status.st_mtime_ns]
    except OSError:
        file_facts = [-1, -1]
    windows = asdict(plan.windows) if plan.windows else None
    decisive = [
        plan.recipe.to_json(),
        [clip.id, file_facts, clip.start, clip.end, clip.transcript, clip.words],
        [windows, asdict(plan.limits)],
    ]
    return sha256_of_bytes(json.dumps(decisive).encode("utf-8"))


def run_row(plan: Plan, row: ClipRow, using: Extractors) -> RowRecord:
    """Extract one row, write its arrays, then its record."""
    clips = [row.clip]
    if plan.windows:
        clips = windows_of(row.clip, plan.windows, plan.limits)
    records = []
    for clip in clips:
        extracted = extract_clip(clip, using, plan.limits)
        records.append(_save(plan.out, clip, extracted))
    record = RowRecord(key_of(plan, row), records)
    _write(record_path(plan, row), json.dumps(asdict(record), ensure_ascii=False, indent=1))
    return record


def _save(out: Path, clip: ClipSource, extracted: ExtractedClip) -> ClipRecord:
    """Write the arrays of one clip."""
    arrays = {}
    for modality, frames in extracted.arrays.items():
        body, suffix = _file_of(frames)
        name = f"{place_of(clip.id)}.{modality}.{suffix}"
        _write(out / name, body)
        arrays[modality] = (name, len(body))
    return ClipRecord(
        id=clip.id,
        start=clip.start,
        end=clip.end,
        seconds=round(extracted.seconds, 3),
        transcript=extracted.transcript,
        words=[(word.text, word.start, word.end) for word in extracted.words],
        missing=extracted.missing,
        arrays=arrays,
    )


def _file_of(frames: np.ndarray) -> tuple[bytes, str]:
    """The file of an array, and what its name ends in; media are files already."""
    if frames.dtype == np.uint8:
        body = frames.tobytes()
        return body, suffix_of(body)
    buffer = BytesIO()
    np.save(buffer, frames, allow_pickle=False)
    return buffer.getvalue(), "npy"


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _died(plan: Plan, row: ClipRow) -> RowRecord:
    """The record of a row that made its process die, twice."""
    missing = {record.modality: DIED for record in plan.recipe.extractors}
    transcript = row.clip.transcript
    if transcript:
        missing.pop("text", None)
    clip = ClipRecord(row.clip.id, row.clip.start, row.clip.end, 0.0, transcript, [], missing)
    record = RowRecord(key_of(plan, row), [clip], is_final=False)
    _write(record_path(plan, row), json.dumps(asdict(record), ensure_ascii=False, indent=1))
    return record


def _run_in_processes(
    plan: Plan, rows: Iterator[ClipRow | RowRecord], processes: int
) -> Iterator[RowRecord]:
    """Records as rows are done. When a process dies all rows under way are tried again, alone."""
    is_done = False
    while not is_done:
        with _Pool(plan, processes) as pool:
            try:
                yield from pool.run(rows)
                is_done = True
            except BrokenProcessPool:
                suspects = list(pool.pending.values())
        if not is_done:
            for row in suspects:
                yield _run_alone(plan, row)


def _run_alone(plan: Plan, row: ClipRow) -> RowRecord:
    with _Pool(plan, 1) as pool:
        try:
            (record,) = pool.run(iter([row]))
        except BrokenProcessPool:
            record = _died(plan, row)
    return record


class _Pool:
    """Processes that have the extractors open; they end at once when the block is left early."""

    def __init__(self, plan: Plan, processes: int):
        self.pending: dict[Future[RowRecord], ClipRow] = {}
        self._processes = processes
        self._others = set(multiprocessing.active_children())
        # a process of its own start: libraries with threads do not survive being copied
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(processes, context, _begin_worker, (plan,))

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.pending:  # Ctrl-C, or an error: what is under way is not waited for
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        with suppress(BrokenProcessPool):
            self._pool.shutdown(cancel_futures=True)

    def run(self, rows: Iterator[ClipRow | RowRecord]) -> Iterator[RowRecord]:
        """Records as they come; ``pending`` holds the rows under way."""
        while True:
            for item in rows:
                if isinstance(item, RowRecord):
                    yield item
                    continue
                self._submit(item)
                if len(self.pending) >= 2 * self._processes:  # bounds the rows held in memory
                    break
            if not self.pending:
                return
            for future in wait(self.pending, return_when=FIRST_COMPLETED).done:
                record = future.result()  # raises before the row is taken off the list
                del self.pending[future]
                yield record

    def _submit(self, row: ClipRow) -> None:
        try:
            future = self._pool.submit(_run_in_worker, row)
        except BrokenProcessPool:
            self.pending[Future()] = row  # it is tried again with the others
            raise
        self.pending[future] = row


_worker: tuple[Plan, Extractors]


def _begin_worker(plan: Plan) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=end_with_parent, daemon=True).start()
    _worker = plan, open_extractors(plan.recipe)
    if "torch" in sys.modules:  # only extractors with a model need it
        sys.modules["torch"].set_num_threads(1)


def _run_in_worker(row: ClipRow) -> RowRecord:
    plan, extractors = _worker
    return run_row(plan, row, extractors)
