"""The cache of downloaded shards: shared by processes, bounded, and mended when it goes bad."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from shard_server import SIZES, TAR, everything, read_all

from data_shards.reading import remote
from data_shards.reading.remote import Remote
from data_shards.shards.manifest import read_manifest
from data_shards.stream import Stream


@pytest.mark.parametrize("suffix", ["tar", "idx"])
def test_what_went_bad_in_the_cache_is_fetched_again(server, tmp_path, suffix, caplog):
    cache = tmp_path / "cache"
    read_all(server.url, cache)
    for path in cache.glob(f"*.{suffix}"):
        body = bytearray(path.read_bytes())
        body[len(body) // 2] ^= 1
        path.write_bytes(body)
    before = len(server.asked)
    with caplog.at_level(logging.WARNING):
        assert read_all(server.url, cache) == everything(server)
    asked = {name for name, _ in server.asked[before:]}
    assert asked == {"manifest.json", *(f"train-00000{i}.{suffix}" for i in range(5))}
    assert "fetching it again" in caplog.text


def test_the_ranks_of_a_machine_share_one_download(server, tmp_path):
    code = (
        "import sys; from pathlib import Path; from data_shards.stream import Stream\n"
        "stream = Stream(sys.argv[1], 'train', global_batch=4, window=2, cache=Path(sys.argv[2]),"
        " rank=int(sys.argv[3]), ranks=2)\n"
        "print(sum(int(part.weight.sum()) for (part,) in stream.epoch(0)))"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, server.url, str(tmp_path / "cache"), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    counts = [int(process.communicate()[0]) for process in ranks]
    assert sum(counts) == sum(SIZES)
    for i in range(5):
        assert len(server.starts(f"train-00000{i}.tar")) == 1
        assert len(server.starts(f"train-00000{i}.idx")) == 1


def used(cache: Path) -> int:
    return sum(
        path.stat().st_size for path in cache.iterdir() if path.suffix in (".tar", ".part", ".idx")
    )


def test_the_cache_stays_within_its_bound_and_drops_the_oldest(server, tmp_path):
    cache = tmp_path / "cache"
    shards = read_manifest(server.folder).splits["train"]
    bound = sum(sorted(shard.bytes for shard in shards)[-2:]) + 8000
    (cache / "kept").mkdir(parents=True)
    (cache / "other.tar").write_bytes(b"not ours" * 100_000)
    stream = Stream(
        server.url,
        "train",
        global_batch=1,
        window=1,
        cache=cache,
        cache_gb=bound / 1e9,
        prefetch=0,
        shuffle=False,
    )
    seen = []
    for (part,) in stream.epoch(0):
        seen.append(part.index.item())
        ours = [path for path in cache.iterdir() if path.name != "other.tar"]
        assert (
            sum(path.stat().st_size for path in ours if path.suffix in (".tar", ".part", ".idx"))
            <= bound
        )
    assert seen == list(range(sum(SIZES)))
    stream.close()
    assert (cache / "other.tar").exists()  # a cache folder may hold other things
    kept = {stream.store.cached_path(shard).name for shard in shards[-1:]}  # type: ignore[attr-defined]
    assert kept <= {path.name for path in cache.iterdir()}  # the newest
    assert not stream.store.cached_path(shards[0]).exists()  # type: ignore[attr-defined]


def test_a_shard_in_use_is_never_evicted(server, tmp_path, caplog):
    shards = read_manifest(server.folder).splits["train"]
    bound = 1.1 * max(shard.bytes for shard in shards)
    store = Remote(server.url, tmp_path / "cache", bound / 1e9)
    other = Remote(server.url, tmp_path / "cache", bound / 1e9)  # another rank's
    with store.open_tar(shards[2]) as held:
        with caplog.at_level(logging.WARNING):
            other.open_tar(shards[4]).close()
        assert store.cached_path(shards[2]).exists()
        assert "leave no room" in caplog.text
        assert len(held.read()) == shards[2].bytes
    other.open_tar(shards[0]).close()
    assert not store.cached_path(shards[2]).exists()
    assert used(tmp_path / "cache") <= bound


def test_a_transfer_that_nobody_continues_makes_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 4096)
    shards = read_manifest(server.folder).splits["train"]
    store = Remote(server.url, tmp_path / "cache", 1.2 * max(shard.bytes for shard in shards) / 1e9)
    server.faults[TAR].extend(["", "dead"])
    with pytest.raises(ConnectionError):
        store.open_tar(shards[2])
    assert len(list((tmp_path / "cache").glob("*.part"))) == 1
    store.open_tar(shards[1]).close()
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_cache_that_cannot_hold_two_windows_is_refused(server, tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot hold two windows of 2 shards; give at least cache_gb="
    ):
        read_all(server.url, tmp_path / "cache", cache_gb=1e-5)


def test_urls_and_contents_do_not_share_a_name(server, tmp_path):
    first, second = read_manifest(server.folder).splits["train"][:2]
    one, two = (Remote(server.url + path, tmp_path / "cache", 1) for path in ("", "/other"))
    assert len({one.cached_path(first), one.cached_path(second), two.cached_path(first)}) == 3
    assert one.cached_path(first) == Remote(server.url + "/", tmp_path / "cache", 1).cached_path(
        first
    )
