"""Shards behind URLs, from real servers on this machine that fail in the ways servers do."""

from __future__ import annotations

import aiohttp
import pytest
import tenacity
from shard_server import INDEX, SIZES, TAR, everything, read_all

from data_shards.fetching.unfinished import Unfinished
from data_shards.reading import remote
from data_shards.shards.manifest import DataError
from data_shards.stream import Stream


def test_a_url_gives_what_its_folder_gives(server, tmp_path):
    assert read_all(server.url, tmp_path / "cache") == everything(server)
    before = len(server.asked)
    assert read_all(server.url, tmp_path / "cache") == everything(server)
    assert server.asked[before:] == [("manifest.json", 0)]  # the rest is in the cache


@pytest.mark.parametrize("name", ["manifest.json", INDEX, TAR])
@pytest.mark.parametrize("fault", ["500", "503", "reset", "truncated"])
def test_a_fault_that_passes_is_waited_for(server, tmp_path, name, fault):
    server.faults[name].extend([fault, fault])
    assert read_all(server.url, tmp_path / "cache") == everything(server)
    assert not server.faults[name]


def test_a_body_that_stops_coming_is_asked_for_again(server, tmp_path):
    server.faults[TAR].append("slow")
    patience = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_read=0.3)}}
    assert read_all(server.url, tmp_path / "cache", options=patience) == everything(server)
    assert len(server.starts(TAR)) == 2


@pytest.mark.parametrize("fault", ["500", "reset", "truncated"])
def test_a_fault_that_stays_names_the_url(server, tmp_path, fault):
    server.always[TAR] = fault
    with pytest.raises(ConnectionError, match=rf"could not fetch {server.url}/{TAR}"):
        read_all(server.url, tmp_path / "cache")


def test_an_answer_that_will_not_change_is_not_asked_for_again(server, tmp_path):
    server.always[TAR] = "403"
    with pytest.raises(ConnectionError, match="the server answers 403"):
        read_all(server.url, tmp_path / "cache", prefetch=0)
    assert len(server.starts(TAR)) <= 2  # the second asks for the size only


def test_a_broken_transfer_is_continued_by_the_next_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 4096)
    server.faults[TAR].extend(["", "", "", "dead"])
    with pytest.raises(ConnectionError, match="run the same command again"):
        read_all(server.url, tmp_path / "cache", connections=1)
    # the one behind it may have been asked for before the failure was known
    assert sorted({*server.starts(TAR)})[:4] == [0, 4096, 8192, 12288]
    server.always.clear()
    size = (server.folder / TAR).stat().st_size
    (part,) = (tmp_path / "cache").glob(f"*.{size}.part")
    with part.open("r+b") as file:
        assert Unfinished(file, size, 4096).missing() == list(range(3, -(-size // 4096)))
    before = len(server.starts(TAR))
    assert read_all(server.url, tmp_path / "cache", connections=1) == everything(server)
    assert server.starts(TAR)[before:] == list(range(12288, size, 4096))


def test_many_broken_chunks_are_fetched_by_the_next_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 1024)
    server.faults[TAR].extend(["", "500", "", "truncated", "", "", "dead"])
    with pytest.raises(ConnectionError):
        read_all(server.url, tmp_path / "cache")
    server.always.clear()
    size = (server.folder / TAR).stat().st_size
    (part,) = (tmp_path / "cache").glob(f"*.{size}.part")
    with part.open("r+b") as file:
        missing = Unfinished(file, size, 1024).missing()
    before = len(server.starts(TAR))
    assert read_all(server.url, tmp_path / "cache") == everything(server)
    assert sorted(server.starts(TAR)[before:]) == [1024 * number for number in missing]


def test_a_continued_transfer_of_something_else_is_found_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 4096)
    server.faults[TAR].extend(["wrong", "", "dead"])
    with pytest.raises(ConnectionError):
        read_all(server.url, tmp_path / "cache")
    server.always.clear()
    assert read_all(server.url, tmp_path / "cache") == everything(server)


def test_a_server_without_ranges_will_do(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 4096)
    server.ranges = False
    server.faults[TAR].append("truncated")
    assert read_all(server.url, tmp_path / "cache") == everything(server)


@pytest.mark.parametrize("name", ["manifest.json", INDEX, TAR])
def test_a_file_that_is_not_there_is_named_at_once(server, tmp_path, name):
    (server.folder / name).unlink()
    with pytest.raises(DataError, match=rf"{server.url}/{name} does not exist"):
        read_all(server.url, tmp_path / "cache", prefetch=0)
    assert len(server.starts(name)) <= 2


@pytest.mark.parametrize("change", ["flipped", "cut", "cut at a chunk"])
def test_damage_at_the_origin_is_refused_and_can_be_skipped(server, tmp_path, change, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 8192)
    body = bytearray((server.folder / TAR).read_bytes())
    body[700] ^= 1
    cut = {"flipped": len(body), "cut": len(body) - 300, "cut at a chunk": 8192}[change]
    (server.folder / TAR).write_bytes(body[:cut])
    with pytest.raises(DataError, match=rf"{TAR}.*(checksum is wrong|bytes, not)"):
        read_all(server.url, tmp_path / "cache")
    found = read_all(server.url, tmp_path / "cache", on_corrupt="skip", max_skipped_fraction=0.5)
    assert sorted(sum(found, [])) == [*range(7), *range(12, 20)]


def test_leaving_the_loop_does_not_wait_for_a_dead_server(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        remote, "RETRY", {"stop": tenacity.stop_never, "wait": tenacity.wait_fixed(3600)}
    )
    server.always[TAR] = "500"
    stream = Stream(
        server.url, "train", global_batch=2, window=2, cache=tmp_path / "cache", shuffle=False
    )
    steps = stream.epoch(0)
    assert next(steps)[0].index.tolist() == [0, 1]
    assert server.failing.wait(30)  # the third shard is being opened ahead
    steps.close()  # type: ignore[attr-defined]
    stream.close()
    server.always.clear()
    again = Stream(
        server.url, "train", global_batch=2, window=2, cache=tmp_path / "cache", shuffle=False
    )
    assert sum(len(part.index) for (part,) in again.epoch(0)) == sum(SIZES)


@pytest.mark.parametrize(
    "url",
    [
        "pipe://cat",
        "file:///etc",
        "memory://x",
        "simplecache::http://h/x",
        "ftp://h/x",
        "github://a:b@c/x",
    ],
)
def test_only_plain_known_protocols_are_read(url, tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot read .*: data= is a folder or a URL of http, https, s3, gs"
    ):
        Stream(url, "train", global_batch=4, cache=tmp_path)


def test_a_manifest_cannot_lead_out_of_its_url(server, tmp_path):
    path = server.folder / "manifest.json"
    path.write_text(path.read_text().replace("train-000002.tar", "../secret.tar"))
    with pytest.raises(DataError, match=r"manifest\.json was changed"):
        read_all(server.url, tmp_path / "cache")
