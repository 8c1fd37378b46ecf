"""What very many shards cost: opening a stream, a step, and memory, with one shard that stands for
all of them.

    python benchmarks/streaming_growth.py [shards=10000,1000000]

The folder of each size holds a manifest, a table where there are more than ten thousand, and one
shard under the name of every other. Each size runs in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
from common import ROOT, made_by, read_words, refuse_others, run_command

from data_shards import stream as streams
from data_shards.reading.storage import Folder
from data_shards.shards.manifest import Field, Manifest, Sample, Shard, write_manifest
from data_shards.shards.writer import write_shard
from data_shards.stream import Stream

SETTINGS = {"shards": "10000,1000000"}
SAMPLES = 1000  # of a shard
BATCH = 64
STEPS = 200  # that are timed, after as many to warm up
RESULTS = ROOT / "benchmarks" / "results" / "streaming_growth.json"


class OneForAll(Folder):
    """A folder in which one shard stands for all."""

    def open_tar(self, shard: Shard) -> IO[bytes]:
        return super().open_tar(replace(shard, name="train-0000000.tar"))

    def read_index(self, shard: Shard) -> bytes:
        return super().read_index(replace(shard, name="train-0000000.tar"))

    def shards_of_wrong_size(self, shards: Any) -> list[int]:
        return []


def write(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    keyed = []
    for row in range(SAMPLES):
        arrays = {"audio": rng.standard_normal((rng.integers(1, 5), 4), np.float32)}
        keyed.append((f"s{row:04d}", Sample(f"clip {row}", arrays)))
    one = write_shard(folder, "train-0000000.tar", keyed)
    shards = tuple(replace(one, name=f"train-{number:07d}.tar") for number in range(count))
    fields = {"audio": Field("float32", (None, 4))}
    manifest = Manifest("many", "arrays", fields, {"train": shards}, synthetic=True)
    write_manifest(folder, manifest, manifest.to_json())


def measure(folder: Path, answer: Any) -> None:
    from data_shards.reading import copy_rows  # noqa: F401  # loading numba is none of it

    streams.open_store = lambda *_: OneForAll(folder)  # type: ignore[assignment]
    process = psutil.Process()
    before, began = process.memory_info().rss, time.perf_counter()
    stream = Stream(folder, "train", global_batch=BATCH, prefetch=0, groups=64)
    opened = time.perf_counter() - began
    steps = stream.epoch(0)
    next(steps)
    first = time.perf_counter() - began
    for _ in range(STEPS):
        next(steps)
    began = time.perf_counter()
    for _ in range(STEPS):
        next(steps)
    step = (time.perf_counter() - began) / STEPS
    answer.put(
        {
            "samples": len(stream),
            "opened, s": opened,
            "first batch, s": first,
            "step, ms": 1000 * step,
            "memory, MB": (process.memory_info().rss - before) / 1e6,
        }
    )
    steps.close()


def main() -> int:
    own, others = read_words(SETTINGS)
    refuse_others(others, SETTINGS)
    context = multiprocessing.get_context("spawn")
    rows = []
    for count in map(int, own["shards"].split(",")):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), count)
            answer = context.Queue()
            process = context.Process(target=measure, args=(Path(folder), answer))
            process.start()
            rows.append({"shards": count, **answer.get(timeout=600)})
            process.join()
        print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text(json.dumps({"rows": rows, **made_by()}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
