"""First epochs from a server: megabytes a second that the ranks of one node fetch, check and read
together, from an empty cache.

    python benchmarks/streaming_remote.py [shards=16] [mb=32] [latency=0.05] [bandwidth=40]
        [ranks=1,4] [connections=0,2] [work=FOLDER]

``shards`` shards of ``mb`` MB lie behind ``slow_server.py``, which answers each request after
``latency`` seconds and sends ``bandwidth`` MB/s on a connection. Ranks are processes with one cache;
``connections=0`` is what a stream chooses by itself. The line a connection could fill by itself
stands beside the results, and so does the CPU time of all ranks; the server takes some of the same
cores.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, made_by, read_words, refuse_others, run_command

from data_shards.shards.manifest import Field, Manifest, Sample
from data_shards.shards.writer import write_shard
from data_shards.stream import Stream

SETTINGS = {
    "shards": "16",
    "mb": "32",
    "latency": "0.05",
    "bandwidth": "40",
    "ranks": "1,4",
    "connections": "0,2",
    "work": "",
}
RESULTS = ROOT / "benchmarks" / "results" / "streaming_remote.json"
SAMPLE = 1 << 18  # numbers of a sample, a megabyte


def write(folder: Path, count: int, megabytes: int) -> int:
    """``count`` shards of so many megabytes; their bytes in all."""
    rng = np.random.default_rng(0)
    shards = []
    for number in range(count):
        keyed = []
        for row in range(megabytes):
            arrays = {"frames": rng.standard_normal((SAMPLE // 64, 64), np.float32)}
            keyed.append((f"s{number:04d}_{row:04d}", Sample(f"{number}-{row}", arrays)))
        shards.append(write_shard(folder, f"train-{number:06d}.tar", keyed))
    fields = {"frames": Field("float32", (None, 64))}
    manifest = Manifest("slow", "arrays", fields, {"train": tuple(shards)}, synthetic=True)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return sum(shard.bytes for shard in shards)


@contextmanager
def slow_server(folder: Path, own: dict[str, str]) -> Iterator[str]:
    """The address of a server of ``folder``."""
    script = Path(__file__).with_name("slow_server.py")
    words = [f"folder={folder}", f"latency={own['latency']}", f"bandwidth={own['bandwidth']}"]
    with subprocess.Popen(
        [sys.executable, str(script), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()


def read(
    url: str,
    cache: Path,
    rank: int,
    ranks: int,
    connections: int,
    barrier: Any,
    seconds: Any,
) -> None:
    """One rank's first epoch; seconds, and CPU seconds, from opening the stream to the end."""
    from data_shards.reading import copy_rows  # noqa: F401  # loading numba is none of it

    barrier.wait()
    began, cpu = time.monotonic(), time.process_time()
    stream = Stream(
        url,
        "train",
        global_batch=4 * ranks,
        rank=rank,
        ranks=ranks,
        window=8,
        cache=cache,
        connections=connections,
    )
    for _ in stream.epoch(0):
        pass
    stream.close()
    seconds.put((time.monotonic() - began, time.process_time() - cpu))


def measure(url: str, cache: Path, ranks: int, connections: int, size: int) -> dict[str, Any]:
    """A node of ``ranks`` processes with an empty cache."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(ranks), context.Queue()
    processes = []
    for rank in range(ranks):
        words = (url, cache, rank, ranks, connections, barrier, seconds)
        processes.append(context.Process(target=read, args=words))
        processes[-1].start()
    found = [seconds.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    slowest = max(wall for wall, _ in found)
    return {
        "ranks": ranks,
        "connections": connections or "by latency",
        "MB/s": size / 1e6 / slowest,
        "CPU s": sum(cpu for _, cpu in found),
    }


def main() -> int:
    own, others = read_words(SETTINGS)
    refuse_others(others, SETTINGS)
    rows = []
    with tempfile.TemporaryDirectory(dir=own["work"] or None) as work:
        folder = Path(work) / "shards"
        folder.mkdir()
        size = write(folder, int(own["shards"]), int(own["mb"]))
        with slow_server(folder, own) as url:
            for ranks in map(int, own["ranks"].split(",")):
                for connections in map(int, own["connections"].split(",")):
                    with tempfile.TemporaryDirectory(dir=work) as cache:
                        rows.append(measure(url, Path(cache), ranks, connections, size))
                    print(json.dumps(rows[-1]), flush=True)
    settings = {name: value for name, value in own.items() if name != "work"}
    results = {"settings": settings, "megabytes": size / 1e6, "rows": rows, **made_by()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
