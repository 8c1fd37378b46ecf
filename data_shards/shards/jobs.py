"""Shards as jobs: done by any number of processes, recorded one by one, never done twice.

A shard appears complete (``write_shard``), then its record does. After an interruption, kill -9
included, the records tell what is done; a job whose record agrees with its raw data, options and
bytes on disk is left alone.
"""

from __future__ import annotations

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
from functools import cache
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter
from tqdm import tqdm

from core.file_access.regular_files import read_regular_file
from core.files import sha256_of_bytes, sha256_of_file, write_atomically
from data_shards.shards.frame_moments import Moments, add_frames
from data_shards.shards.manifest import DataError, Sample, Shard
from data_shards.shards.sentiment_schema import Rules, check_sample
from data_shards.shards.writer import index_name, write_shard

if TYPE_CHECKING:
    from data_shards.sources.raw_dataset import RawDataset

RECORDS = ".convert"  # folder of the records, inside the shard folder


@dataclass(frozen=True)
class Job:
    """One shard to be written."""

    split: str
    number: int  # of the shard in its split
    start: int  # number of the first row in its split
    rows: tuple[Any, ...]
    key: str  # hash of raw data, options and rows: same key, same bytes

    @property
    def name(self) -> str:
        """The tar's name."""
        return f"{self.split}-{self.number:06d}.tar"


@dataclass(frozen=True)
class Record:
    """What is known of a finished shard."""

    key: str
    shard: Shard
    repairs: dict[str, int]
    moments: dict[str, Moments]  # of train shards only: float field -> moments of its frames
    max_length: dict[str, int]
    empty: int = 0  # samples without any modality

    @staticmethod
    def load(path: Path) -> Record | None:
        """None where the record cannot be used; its shard is then written again."""
        try:
            return _record_adapter().validate_json(read_regular_file(path), strict=True)
        except (OSError, ValueError):
            return None

    def is_whole(self, out: Path) -> bool:
        """Whether the shard and its index are on disk as recorded."""
        tar = out / self.shard.name
        beside = out / index_name(self.shard.name)
        if not tar.is_file() or not beside.is_file():
            return False
        tar_agrees = sha256_of_file(tar) == self.shard.sha256
        return tar_agrees and sha256_of_file(beside) == self.shard.index_sha256


@cache
def _record_adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


def plan_jobs(dataset: RawDataset, identity: str, shard_size: int) -> Iterator[Job]:
    """All jobs, each as soon as its last row has come up; at most one open shard per split is held.

    Args:
        identity: hash of everything that decides about bytes, apart from the rows and the files
            they point to.
    """
    waiting: dict[str, list[Any]] = {split: [] for split in dataset.counts}
    finished: Counter[str] = Counter()  # split -> shards
    for split, row in dataset.rows():
        waiting[split].append(row)
        if len(waiting[split]) == shard_size:
            start = finished[split] * shard_size
            yield _job(dataset, identity, split, finished[split], start, waiting[split])
            waiting[split] = []
            finished[split] += 1
    for split, rows in waiting.items():
        if rows:
            start = finished[split] * shard_size
            yield _job(dataset, identity, split, finished[split], start, rows)


def _job(
    dataset: RawDataset, identity: str, split: str, number: int, start: int, rows: list[Any]
) -> Job:
    stamps = [dataset.stamp(row) for row in rows] if dataset.stamp else []
    decisive = json.dumps([identity, split, start, len(rows), stamps])
    return Job(split, number, start, tuple(rows), sha256_of_bytes(decisive.encode("utf-8")))


def run_jobs(
    dataset: RawDataset, out: Path, jobs: Iterable[Job], processes: int, progress: bool
) -> dict[str, list[Record]]:
    """Split -> the records of its shards in order; finished shards are not written again."""
    done: dict[tuple[str, int], Record] = {}  # by split and number of the shard
    samples = sum(dataset.counts.values())
    with tqdm(total=samples, unit="sample", desc=dataset.name, disable=not progress) as bar:

        def jobs_to_do() -> Iterator[Job]:
            # jobs are planned while others run, so what is there is found out along the way
            for job in jobs:
                record = Record.load(_record_path(out, job))
                if record is not None and record.key == job.key and record.is_whole(out):
                    done[job.split, job.number] = record
                    bar.update(len(job.rows))
                else:
                    yield job

        for job, record in _run_in_processes(dataset, out, jobs_to_do(), processes):
            done[job.split, job.number] = record
            bar.update(len(job.rows))
    records: dict[str, list[Record]] = {split: [] for split in dataset.counts}
    for split, number in sorted(done):
        records[split].append(done[split, number])
    return records


def _record_path(out: Path, job: Job) -> Path:
    return out / RECORDS / f"{job.name}.json"


def _run_in_processes(
    dataset: RawDataset, out: Path, jobs: Iterator[Job], processes: int
) -> Iterator[tuple[Job, Record]]:
    """Jobs and their records as they are done, in any order."""
    if processes == 1:
        for job in jobs:
            yield job, run_job(dataset, out, job)
        return
    # A forked worker shares the raw data's memory; elsewhere each worker gets a copy.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(processes, context, _begin_worker, (dataset, out))
    pending: dict[Future[Record], Job] = {}
    try:
        while True:
            for job in jobs:
                pending[pool.submit(_run_job_in_worker, job)] = job
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


_worker: tuple[RawDataset, Path]


def _begin_worker(dataset: RawDataset, out: Path) -> None:
    global _worker
    _worker = dataset, out
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Else workers of a killed parent would write into a folder that somebody else continues."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)


def _run_job_in_worker(job: Job) -> Record:
    return run_job(*_worker, job)


def run_job(dataset: RawDataset, out: Path, job: Job) -> Record:
    """Write one shard, then its record."""
    made = _Samples(dataset, job)
    shard = write_shard(out, job.name, made)
    record = Record(
        key=job.key,
        shard=shard,
        repairs=dict(+made.repairs),  # + drops what was counted as none
        moments=made.moments,
        max_length=made.max_length,
        empty=made.empty,
    )
    write_atomically(_record_path(out, job), json.dumps(asdict(record)))
    return record


class _Samples:
    """The samples of a job, made one at a time, and what was seen of them on the way."""

    def __init__(self, dataset: RawDataset, job: Job):
        self.dataset = dataset
        self.job = job
        self.repairs: Counter[str] = Counter()
        self.moments: dict[str, Moments] = {}
        self.max_length: dict[str, int] = {}
        self.empty = 0
        self.rules = Rules.of(dataset.labels, dataset.tokenizer)

    def __iter__(self) -> Iterator[tuple[str, Sample]]:
        for number, row in enumerate(self.job.rows, self.job.start):
            sample = self.dataset.sample(row, self.repairs)
            if self.dataset.task == "sentiment":
                check_sample(sample.arrays, self.rules, f"sample {sample.id!r}")
            for field, array in sample.arrays.items():
                media = sample.media.get(field)
                self._measure(field, array, None if media is None else media.length)
            self.empty += not any(map(self._has_time_axis, sample.arrays))
            yield f"{self.job.split}_{number:08d}", sample

    def _has_time_axis(self, field: str) -> bool:
        return None in self.dataset.fields[field].shape

    def _measure(self, field: str, array: np.ndarray, decoded_length: int | None) -> None:
        if not self._has_time_axis(field):
            return
        length = len(array) if decoded_length is None else decoded_length
        self.max_length[field] = max(self.max_length.get(field, 0), length)
        if self.job.split == "train" and array.dtype.kind == "f":
            add_frames(self.moments, field, array)
