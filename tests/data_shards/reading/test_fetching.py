"""Fetching: chunks, indexes and shards many at a time, over all processes of a machine, and nobody
waits for what another fetches."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_server import INDEX, SIZES, TAR, Handler, Server, everything, read_all, serving

from data_shards.fetching import sample_ranges
from data_shards.fetching.connections import FEWEST, MOST, Connections, for_latency
from data_shards.fetching.unfinished import Unfinished
from data_shards.reading import remote
from data_shards.reading.remote import Remote
from data_shards.reading.sampler import Part, Sampler
from data_shards.shards.index_table import END, START, Index
from data_shards.shards.manifest import DataError, read_manifest
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
    handler: Any = type("Gathers", (Gathering,), {"waited": waited})
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


class Weighing(Handler):
    """Adds up what is sent of tars."""

    def _found(self, name: str, wanted: re.Match[str] | None) -> tuple[int, dict[str, str], bytes]:
        found = super()._found(name, wanted)
        if self.command == "GET" and name.endswith(".tar"):
            self.server.weights.append(len(found[2]))  # type: ignore[attr-defined]
        return found


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_rank_that_needs_few_samples_of_a_shard_fetches_those(
    make_shards, tmp_path, monkeypatch, micro_batches
):
    make_shards(tmp_path / "origin", (30, 40, 30, 25))
    monkeypatch.setattr(sample_ranges, "GAP", 0)
    server = Server(tmp_path / "origin", Weighing)
    server.weights = []  # type: ignore[attr-defined]
    options = {"micro_batches": micro_batches}
    with serving(server):
        whole = [steps_of(server.url, tmp_path / "whole", rank, **options) for rank in range(8)]
        of_whole = sum(server.weights)  # type: ignore[attr-defined]
        server.weights.clear()  # type: ignore[attr-defined]
        tars = 0
        for rank in range(8):
            cache = tmp_path / f"rank-{rank}"
            assert steps_of(server.url, cache, rank, ranges=True, **options) == whole[rank]
            tars += len(list(cache.glob("*.tar")))
        of_ranks = sum(server.weights)  # type: ignore[attr-defined]
    assert tars <= 4  # of 32: now and then a rank gets a quarter of a shard
    # Each of eight ranks fetches an eighth, twice: the next epoch needs other samples.
    assert of_ranks < 2.2 * of_whole


def steps_of(url: str, cache: Path, rank: int, **options) -> list[list[list[int]]]:
    """The samples of this rank's micro-batches in two epochs."""
    stream = Stream(
        url, "train", global_batch=16, rank=rank, ranks=8, window=2, cache=cache, **options
    )
    found = []
    for epoch in range(2):
        for parts in stream.epoch(epoch):
            for part in parts:
                assert part.arrays["label"].tolist() == part.index.tolist()
            found.append([part.index[part.weight > 0].tolist() for part in parts])
    stream.close()
    return found


def test_other_samples_of_such_a_shard_can_be_read_too(make_shards, tmp_path):
    make_shards(tmp_path / "origin", (30, 40))
    with serving(Server(tmp_path / "origin")) as server:
        stream = Stream(
            server.url,
            "train",
            global_batch=16,
            ranks=8,
            window=2,
            cache=tmp_path / "cache",
            ranges=True,
        )
        steps = stream.epoch(0)
        next(steps)
        assert stream.ids(range(70)) == [f"id-{number}" for number in range(70)]
        steps.close()  # type: ignore[attr-defined]
        stream.close()


def test_a_damaged_sample_is_found_where_it_is_fetched_by_itself(make_shards, tmp_path):
    make_shards(tmp_path / "origin", (64,))
    path = tmp_path / "origin" / "train-000000.tar"
    body = bytearray(path.read_bytes())
    for position in range(600, len(body), 4096):
        body[position] ^= 1
    path.write_bytes(body)
    with serving(Server(tmp_path / "origin")) as server:
        stream = Stream(
            server.url,
            "train",
            global_batch=16,
            ranks=8,
            cache=tmp_path / "cache",
            ranges=True,
        )
        with pytest.raises(
            DataError, match=r"train-000000\.tar is damaged: the checksum of sample"
        ):
            list(stream.epoch(0))
        stream.close()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("parts", [1, 3, 8, 20])
def test_the_rows_of_a_part_are_those_of_its_batches(parts, groups, drop_last):
    sampler = Sampler(
        (7, 9, 1, 12, 8, 3, 5, 6, 11, 2, 9, 10, 4, 7, 8, 9, 6),
        16,
        window=4,
        groups=groups,
        drop_last=drop_last,
    )
    epoch = sampler.epoch(3, lambda shard: np.empty(0))
    for number in range(parts):
        part = Part(number, parts)
        expected: dict[int, list[int]] = {shard: [] for shard in range(len(sampler.samples))}
        for step in range(sampler.steps):
            rows = epoch.batch(step, part)
            for shard, row in zip(rows.shard.tolist(), rows.row.tolist(), strict=True):
                expected[shard].append(row)
        for shard, rows_of_shard in expected.items():
            assert sorted(epoch.rows_of(shard, part).tolist()) == sorted(rows_of_shard)


def test_samples_side_by_side_are_one_range(make_shards, tmp_path):
    make_shards(tmp_path, (6,))
    index = Index.from_bytes((tmp_path / "train-000000.idx").read_bytes(), "here")
    starts, ends = index.table[:, START].tolist(), index.table[:, END].tolist()
    rows = np.array([4, 0, 1])
    assert sample_ranges.merged_ranges(index, rows) == [(starts[0], ends[4])]
    assert merged_without_gap(index, rows) == [(starts[0], ends[1]), (starts[4], ends[4])]


def merged_without_gap(index: Index, rows: np.ndarray) -> list[tuple[int, int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_ranges, "GAP", 0)
        return sample_ranges.merged_ranges(index, rows)
