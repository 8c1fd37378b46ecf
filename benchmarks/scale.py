"""Streaming on many nodes: how much of the data each node fetches, how many requests it makes, how
many shards it holds open, how long it waits. Simulated for up to 1,024 nodes, and measured with
four processes and a server.

    python benchmarks/scale.py [shards=4096] [samples=256] [batch=4096] [mb=64] [step=0.5]
        [latency=0.05] [bandwidth=1000] [connections=16] [measured=yes]

The simulation walks the real order of an epoch, one node at a time. A node has one rank, opens
shards in the order that the stream asks for them, ``connections`` at a time: each answers after
``latency`` seconds, and all share a line of ``bandwidth`` MB/s. It computes ``step`` seconds per
global batch, and waits where a shard that a step needs has not come. Node 0 stands for all: groups
are alike.

The measurement has four processes with a cache of their own, which read an epoch from a server on
this machine; the bytes that they fetched are compared with the simulated ones.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import made_by, read_words, refuse_others, run_command

from data_shards.convert import main as convert
from data_shards.reading.sampler import Part, Sampler
from data_shards.shards.manifest import read_manifest
from data_shards.stream import Stream
from data_shards.synthetic import main as synthetic

SETTINGS = {
    "shards": "4096",
    "samples": "256",
    "batch": "4096",
    "mb": "64",
    "step": "0.5",
    "latency": "0.05",
    "bandwidth": "1000",
    "connections": "16",
    "measured": "yes",
}
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
GROUPS = (1, 64, 128)
RESULTS = Path(__file__).parent / "results" / "scale.json"


class Line(NamedTuple):
    """How shards come to a node."""

    latency: float  # seconds until a request is answered
    transfer: float  # seconds that a shard takes, if nothing else comes
    connections: int  # shards at a time


def simulate(sampler: Sampler, part: Part, line: Line, step_seconds: float) -> dict:
    """What one node does in an epoch."""
    epoch = sampler.epoch(0, no_lengths)
    keep = sampler.shards_in_use(part)
    ready: dict[int, float] = {}  # shard -> when it is here
    held: dict[int, None] = {}  # shards in memory, the least recently used first
    free = [0.0] * line.connections
    now = waited = line_is_free = 0.0
    fetched = requests = most_open = 0
    for step in range(sampler.steps):
        needed = np.unique(epoch.batch(step, part).shard).tolist()
        for shard in dict.fromkeys(needed + epoch.upcoming_shards(step, part)):
            held.pop(shard, None)
            held[shard] = None
            if shard not in ready:
                answered = max(heapq.heappop(free), now) + line.latency
                ready[shard] = line_is_free = max(answered, line_is_free) + line.transfer
                heapq.heappush(free, ready[shard])
                fetched += 1
                requests += 2  # index and tar
        while len(held) > keep:
            held.pop(next(iter(held)))
        most_open = max(most_open, len(held))
        arrival = max((ready[shard] for shard in needed), default=now)
        waited += max(arrival - now, 0.0)
        now = max(arrival, now) + step_seconds
    return {
        "share fetched": fetched / len(sampler.samples),
        "requests": requests,
        "shards open": most_open,
        "waiting": waited / now,
    }


def no_lengths(shard: int) -> np.ndarray:
    raise AssertionError("asked for buckets only")


def simulated(own: dict[str, str]) -> list[dict[str, Any]]:
    sizes = (int(own["samples"]),) * int(own["shards"])
    transfer = float(own["mb"]) / float(own["bandwidth"])
    line = Line(float(own["latency"]), transfer, int(own["connections"]))
    rows = []
    for groups in GROUPS:
        sampler = Sampler(sizes, int(own["batch"]), groups=groups)
        for nodes in NODES:
            found = simulate(sampler, Part(0, nodes), line, float(own["step"]))
            rows.append({"groups": sampler.num_groups, "nodes": nodes, **found})
            print(json.dumps(rows[-1]), flush=True)
    return rows


class Counting(SimpleHTTPRequestHandler):
    """Serves a folder and counts the bytes of tars by the cache that asks."""

    sent: dict[str, int] = {}

    def do_GET(self) -> None:
        node, _, name = self.path.lstrip("/").partition("/")
        self.path = f"/{name}"
        path = Path(self.translate_path(self.path))
        if path.suffix == ".tar" and path.is_file():
            self.sent[node] = self.sent.get(node, 0) + path.stat().st_size
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """No line a request."""


def read_epoch(url: str, cache: str, rank: int, ranks: int, groups: int) -> None:
    stream = Stream(
        f"{url}/node-{rank}",
        "train",
        global_batch=32,
        rank=rank,
        ranks=ranks,
        groups=groups,
        window=2,
        cache=Path(cache) / f"{groups}-{rank}",
        fields=["label"],
    )
    for _ in stream.epoch(0):
        pass
    stream.close()


def measured(ranks: int = 4) -> list[dict[str, Any]]:
    """Share of the training shards' bytes that each of four processes fetched."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        synthetic([f"{folder}/data.pkl"])
        convert([f"{folder}/data.pkl", "--out", str(shards), "--shard-size", "16"])
        train = read_manifest(shards).splits["train"]
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(shards)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for groups in (1, 16):
            Counting.sent.clear()
            context = multiprocessing.get_context("spawn")
            nodes = [
                context.Process(target=read_epoch, args=(url, folder, rank, ranks, groups))
                for rank in range(ranks)
            ]
            for node in nodes:
                node.start()
            for node in nodes:
                node.join()
            if any(node.exitcode for node in nodes):
                raise SystemExit("a process failed; see above")
            sampler = Sampler(tuple(shard.samples for shard in train), 32, window=2, groups=groups)
            expected = [
                simulate(sampler, Part(rank, ranks), Line(1.0, 1.0, 2), 1.0)["share fetched"]
                for rank in range(ranks)
            ]
            total = sum(shard.bytes for shard in train)
            rows.append(
                {
                    "groups": sampler.num_groups,
                    "shards": len(train),
                    "share fetched": [sent / total for _, sent in sorted(Counting.sent.items())],
                    "simulated": expected,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
        server.shutdown()
    return rows


def main() -> int:
    own, others = read_words(SETTINGS)
    refuse_others(others, SETTINGS)
    found: dict[str, Any] = {"settings": own, "simulated": simulated(own)}
    if own["measured"] == "yes":
        found["measured"] = measured()
    RESULTS.write_text(json.dumps(found | made_by(), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
