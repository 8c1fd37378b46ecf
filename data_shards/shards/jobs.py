"""Shards as units of work: made by any number of processes, recorded one by one, never made twice.

A shard appears complete (``write_shard``), then its record does. After an interruption, kill -9 included, the records
tell what is done; a unit whose record agrees with its source, options and bytes on disk is left alone.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_shards.shards.frame_moments import Moments
from data_shards.shards.manifest import DataError, Sample, Shard
from data_shards.shards.writer import index_name, staged, write_shard
from data_shards.sources.base import Source, sha256_of

RECORDS = ".convert"  # folder of the records, inside the shard folder


@dataclass(frozen=True)
class Unit:
    """The work of one shard."""

    split: str
    number: int
    start: int  # place of the first row in its split
    rows: tuple[Any, ...]
    key: str  # of source, options and rows: same key, same bytes

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True)
class Record:
    """What is known of a finished shard."""

    key: str
    shard: Shard
    repairs: dict[str, int]
    moments: dict[str, Moments]  # of train shards only: float field -> moments of its frames
    max_length: dict[str, int]

    @staticmethod
    def load(path: Path) -> Record | None:
        """None where the record cannot be used; its shard is then made again."""
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            moments = {name: Moments(**part) for name, part in body.pop("moments").items()}
            return Record(shard=Shard(**body.pop("shard")), moments=moments, **body)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def is_whole(self, out: Path) -> bool:
        """Whether the shard and its index are on disk as recorded."""
        pairs = (
            (self.shard.name, self.shard.sha256),
            (index_name(self.shard.name), self.shard.index_sha256),
        )
        return all(
            (out / name).is_file() and sha256_of(out / name) == sha256 for name, sha256 in pairs
        )


def units(source: Source, identity: str, shard_size: int) -> Iterator[Unit]:
    """All shards, each as soon as its last row has come up; at most one open shard per split is held.

    Args:
        identity: hash of everything that decides about bytes, apart from the rows and the files they point to.
    """
    waiting: dict[str, list[Any]] = {split: [] for split in source.counts}
    numbers: Counter[str] = Counter()

    def close(split: str) -> Unit:
        rows, waiting[split] = tuple(waiting[split]), []
        number, start = numbers[split], numbers[split] * shard_size
        numbers[split] += 1
        stamps = [source.stamp(row) for row in rows] if source.stamp else []
        work = json.dumps([identity, split, start, len(rows), stamps])
        return Unit(split, number, start, rows, hashlib.sha256(work.encode("utf-8")).hexdigest())

    for split, row in source.rows():
        waiting[split].append(row)
        if len(waiting[split]) == shard_size:
            yield close(split)
    for split, rows in waiting.items():
        if rows:
            yield close(split)


def work(
    source: Source, out: Path, todo: Iterable[Unit], processes: int, progress: bool
) -> dict[str, list[Record]]:
    """Split -> the records of its shards in order; shards that are already there are not made again."""
    done: list[tuple[str, int, Record]] = []
    with tqdm(
        total=sum(source.counts.values()), unit="sample", desc=source.name, disable=not progress
    ) as bar:

        def missing() -> Iterator[Unit]:
            for unit in todo:
                record = Record.load(_record_path(out, unit))
                if record is not None and record.key == unit.key and record.is_whole(out):
                    done.append((unit.split, unit.number, record))
                    bar.update(len(unit.rows))
                else:
                    yield unit

        for unit, record in _make_all(source, out, missing(), processes):
            done.append((unit.split, unit.number, record))
            bar.update(len(unit.rows))
    records: dict[str, list[Record]] = {split: [] for split in source.counts}
    for split, _, record in sorted(done, key=lambda entry: entry[:2]):
        records[split].append(record)
    return records


def _record_path(out: Path, unit: Unit) -> Path:
    return out / RECORDS / f"{unit.name}.json"


def _make_all(
    source: Source, out: Path, todo: Iterator[Unit], processes: int
) -> Iterator[tuple[Unit, Record]]:
    if processes == 1:
        for unit in todo:
            yield unit, make(source, out, unit)
        return
    # A forked worker shares the source's memory; elsewhere each worker gets a copy.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(processes, context, _begin_worker, (source, out))
    pending: dict[Future[Record], Unit] = {}
    try:
        while True:
            for unit in todo:
                pending[pool.submit(_make_in_worker, unit)] = unit
                if len(pending) >= 2 * processes:  # bounds the rows held in memory
                    break
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool:
        raise DataError(
            "a process died while it wrote a shard, most likely for lack of memory; "
            "run the same command again with fewer --processes: finished shards are kept"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # shards that were begun are finished, and kept


_worker: tuple[Source, Path]


def _begin_worker(source: Source, out: Path) -> None:
    global _worker
    _worker = source, out
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent must not leave workers that write into a folder somebody else then continues."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)


def _make_in_worker(unit: Unit) -> Record:
    return make(*_worker, unit)


def make(source: Source, out: Path, unit: Unit) -> Record:
    """Write one shard, then its record."""
    repairs: Counter[str] = Counter()
    moments: dict[str, Moments] = {}
    longest: dict[str, int] = {}

    def samples() -> Iterator[tuple[str, Sample]]:
        for position, row in enumerate(unit.rows, unit.start):
            sample = source.sample(row, repairs)
            for name, array in sample.arrays.items():
                if None not in source.fields[name].shape:
                    continue  # no time axis: labels
                longest[name] = max(longest.get(name, 0), len(array))
                if unit.split == "train" and array.dtype.kind == "f":
                    part = Moments.of(array)
                    moments[name] = moments[name].join(part) if name in moments else part
            yield f"{unit.split}_{position:08d}", sample

    shard = write_shard(out, unit.name, samples())
    record = Record(
        unit.key, shard, dict(+repairs), moments, longest
    )  # + drops what was counted as none
    with staged(_record_path(out, unit)) as file:
        file.write(json.dumps(asdict(record)).encode("utf-8"))
    return record
