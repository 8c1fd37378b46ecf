"""Fetching: chunks, indexes and shards many at a time, over all processes of a machine, and nobody
waits for what another fetches."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from shard_server import INDEX, SIZES, TAR, Handler, Server, everything, read_all, serving

from data_shards.fetching.connections import FEWEST, MOST, Connections, for_latency
from data_shards.fetching.unfinished import Unfinished
from data_shards.reading import remote
from data_shards.reading.remote import Remote
from data_shards.reading.sampler import Part, Sampler
from data_shards.shards.manifest import read_manifest
from data_shards.stream import Stream

TOGETHER = 4  # requests that must be under way at a time


class Gathering(Handler):
    """Answers requests for the files of ``waited`` only once so many are there at a time."""

    waited = {TAR}
    meeting = threading.Barrier(TOGETHER)

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if name in self.waited:
            self.meeting.wait(30)
        super().do_GET()


def served(make_shards, tmp_path, waited: set[str], together: int, sizes=SIZES) -> Server:
    make_shards(tmp_path / "origin", sizes)
    handler = type("Gathers", (Gathering,), {"waited": waited})
    handler.meeting = threading.Barrier(together)
    return Server(tmp_path / "origin", handler)


def test_the_chunks_of_a_shard_are_fetched_together(make_shards, tmp_path, monkeypatch):
    server = served(make_shards, tmp_path, {TAR}, TOGETHER)
    size = (server.folder / TAR).stat().st_size
    monkeypatch.setattr(remote, "CHUNK", -(-size // TOGETHER))
    with serving(server):
        store = Remote(server.url, tmp_path / "cache", 1.0)
        store.read_manifest()
        shard = read_manifest(server.folder).splits["train"][2]
        with store.open_tar(shard) as file:
            assert file.read() == (server.folder / TAR).read_bytes()
    assert sorted(server.starts(TAR)) == [-(-size // TOGETHER) * n for n in range(TOGETHER)]


def test_index_and_tar_are_fetched_together(make_shards, tmp_path):
    with serving(served(make_shards, tmp_path, {TAR, INDEX}, 2)) as server:
        store = Remote(server.url, tmp_path / "cache", 1.0)
        store.read_manifest()
        store.fetch(read_manifest(server.folder).splits["train"][2])
    assert server.starts(TAR) == server.starts(INDEX) == [0]


def test_many_shards_are_fetched_together(make_shards, tmp_path):
    tars = {f"train-{number:06d}.tar" for number in range(FEWEST)}
    with serving(served(make_shards, tmp_path, tars, FEWEST - 1, (2,) * (FEWEST - 1))) as server:
        found = read_all(server.url, tmp_path / "cache", window=FEWEST)
        assert found == read_all(str(server.folder), tmp_path, window=FEWEST)


def test_a_shard_that_another_rank_fetches_keeps_no_other_waiting(server, tmp_path):
    shards = read_manifest(server.folder).splits["train"]
    stream = Stream(server.url, "train", global_batch=4, window=4, cache=tmp_path / "cache")
    store = stream.store
    assert isinstance(store, Remote)
    path = store.cached_path(shards[2])
    opened = stream.reader.open_shards
    with store.cache.lock(path):  # as the process has it that downloads this shard
        opened.open_ahead([2, 0, 1, 3, 4])
        for number in (0, 1, 3, 4):
            assert len(opened.get(number).index) == SIZES[number]
        assert not path.exists()
    assert len(opened.get(2).index) == SIZES[2]
    stream.close()


def test_connections_are_those_of_the_machine(tmp_path):
    both = [Connections(tmp_path, 3) for _ in range(2)]  # of two processes
    lock = threading.Lock()
    at_a_time, most = 0, 0

    def use(connections: Connections) -> None:
        nonlocal at_a_time, most
        for _ in range(10):
            with connections.one():
                with lock:
                    at_a_time += 1
                    most = max(most, at_a_time)
                time.sleep(0)
                with lock:
                    at_a_time -= 1

    threads = [threading.Thread(target=use, args=(both[n % 2],)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_a_time == 0
    assert 1 <= most <= 3


def test_a_slow_answer_asks_for_more_connections():
    assert for_latency(0.0) == FEWEST >= 8
    assert FEWEST < for_latency(0.05) < for_latency(0.08) <= for_latency(10.0) == MOST


def test_a_stream_may_say_how_many_connections(server, tmp_path):
    stream = Stream(server.url, "train", global_batch=4, cache=tmp_path / "cache", connections=3)
    assert stream.store.openers == 3
    stream.close()
    with pytest.raises(ValueError, match="connections must not be negative"):
        Remote(server.url, tmp_path / "cache", 1.0, connections=-1)


def test_chunks_come_in_any_order_and_are_known_to_the_next_process(tmp_path):
    path = tmp_path / "part"
    path.touch()
    with path.open("r+b") as file:
        download = Unfinished(file, 10, 4)
        assert [download.range(n) for n in download.missing()] == [(0, 4), (4, 8), (8, 10)]
        download.mark(8, 10)
        download.mark(0, 3)  # not all of the chunk
        assert download.missing() == [0, 1]
    with path.open("r+b") as file:
        download = Unfinished(file, 10, 5)  # by a version with other chunks
        assert (download.chunk, download.missing()) == (4, [0, 1])
        download.mark(0, 10)
        assert download.missing() == []
        download.finish()
    assert path.stat().st_size == 10


@pytest.mark.parametrize(
    ("there", "missing"), [(0, [0, 1, 2]), (9, [2]), (10, []), (12, [0, 1, 2])]
)
def test_a_transfer_that_an_earlier_version_began_is_continued(tmp_path, there, missing):
    path = tmp_path / "part"
    path.write_bytes(bytes(there))
    with path.open("r+b") as file:
        assert Unfinished(file, 10, 4).missing() == missing


def test_a_part_of_a_large_batch_asks_for_its_own_windows():
    sampler = Sampler((10,) * 64, 320, window=4)  # a batch is eight windows
    epoch = sampler.epoch(0, lambda shard: np.empty(0))
    for number in range(16):
        part = Part(number, 16)
        for step in range(sampler.steps):
            needed = set(epoch.batch(step, part).shard.tolist())
            assert needed <= set(epoch.upcoming_shards(step, part))
            following = epoch.batch(step + 1, part).shard if step + 1 < sampler.steps else ()
            assert set(following) <= set(epoch.upcoming_shards(step, part))


def test_a_server_without_ranges_is_asked_once(server: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 1024)
    server.ranges = False
    assert read_all(server.url, tmp_path / "cache") == everything(server)
    assert server.starts(TAR) == [0]
