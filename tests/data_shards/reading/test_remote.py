"""Shards behind URLs, from real servers on this machine that fail in the ways servers do."""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import struct
import subprocess
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import tenacity
from paths import ROOT

from data_shards.reading import remote
from data_shards.reading.remote import Remote
from data_shards.shards.manifest import DataError, read_manifest
from data_shards.stream import Stream

SIZES = (4, 3, 5, 2, 6)
TAR, INDEX = "train-000002.tar", "train-000002.idx"


class Server(ThreadingHTTPServer):
    """Serves a folder with ranges. ``faults[name]`` are what befalls the next requests for that file."""

    daemon_threads = True

    def __init__(self, folder: Path, handler: type[Handler] | None = None):
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.folder, self.ranges = folder, True
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.always: dict[str, str] = {}
        self.asked: list[tuple[str, int]] = []  # file and first byte of each GET
        self.upstream = ("", 0)  # host and port, of a relay
        self.let_go, self.failing = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data"

    def starts(self, name: str) -> list[int]:
        return [start for asked, start in self.asked if asked == name]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *said: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        name = urlsplit(self.path).path.partition("/data/")[2]
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if send:
            self.server.asked.append((name, int(found[1]) if found else 0))
        fault = self.server.always.get(name) or (
            self.server.faults[name].popleft() if self.server.faults[name] else ""
        )
        if fault == "dead":  # from here on
            fault = self.server.always[name] = "500"
        if name in self.server.always:
            self.server.failing.set()
        if fault in ("500", "503", "403"):
            return self._plain(int(fault))
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        status, headers, body = self._found(name, found if self.server.ranges else None)
        if fault == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for header, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(header, value)
        self.end_headers()
        if not send:
            return None
        if fault == "truncated":
            body = body[: len(body) // 2]
            self.close_connection = True
        if fault == "slow":
            self.wfile.write(body[:10])
            self.server.let_go.wait(20)
            self.close_connection = True
            return None
        self.wfile.write(body)
        return None

    def _found(self, name: str, wanted: re.Match[str] | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer when nothing befalls it."""
        path = self.server.folder / name
        body = path.read_bytes() if path.is_file() else b""
        if not body:
            return 404, {}, b""
        if not wanted:
            return 200, {}, body
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(body))
        if start >= stop:
            return 416, {}, b""
        return 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}, body[start:stop]

    def _plain(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Relay(Handler):
    """Asks the server at ``upstream`` of its own, and lets the faults befall what that answers."""

    def _found(self, name: str, wanted: re.Match[str] | None) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=20)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        own = ("connection", "date", "server", "transfer-encoding")
        return (
            answer.status,
            {name: value for name, value in answer.getheaders() if name.lower() not in own},
            body,
        )


@contextmanager
def serving(made: Server) -> Iterator[Server]:
    with made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.let_go.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def server(make_shards, tmp_path) -> Iterator[Server]:
    make_shards(tmp_path / "origin", SIZES)
    with serving(Server(tmp_path / "origin")) as made:
        yield made


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    retry = {"stop": tenacity.stop_after_attempt(4), "wait": tenacity.wait_none()}
    monkeypatch.setattr(remote, "RETRY", retry)


def read_all(url: str, cache: Path, **options) -> list[list[int]]:
    stream = Stream(url, "train", **({"global_batch": 4, "cache": cache, "window": 2} | options))
    try:
        parts = [part for (part,) in stream.epoch(0)]
    finally:
        stream.close()
    assert all(part.arrays["label"].tolist() == part.index.tolist() for part in parts)
    return [part.index.tolist() for part in parts]


def everything(server: Server) -> list[list[int]]:
    return read_all(str(server.folder), Path("unused"))


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
        read_all(server.url, tmp_path / "cache")
    assert sorted({*server.starts(TAR)}) == [0, 4096, 8192, 12288]
    server.always.clear()
    (part,) = (tmp_path / "cache").glob("*.part")
    assert part.stat().st_size == 12288
    before = len(server.starts(TAR))
    assert read_all(server.url, tmp_path / "cache") == everything(server)
    assert server.starts(TAR)[before] == 12288


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
    kept = {stream.store._local(shard).name for shard in shards[-1:]}  # type: ignore[attr-defined]
    assert kept <= {path.name for path in cache.iterdir()}  # the newest
    assert not stream.store._local(shards[0]).exists()  # type: ignore[attr-defined]


def test_a_shard_in_use_is_never_evicted(server, tmp_path, caplog):
    shards = read_manifest(server.folder).splits["train"]
    bound = 1.1 * max(shard.bytes for shard in shards)
    store = Remote(server.url, tmp_path / "cache", bound / 1e9)
    other = Remote(server.url, tmp_path / "cache", bound / 1e9)  # another rank's
    with store.tar(shards[2]) as held:
        with caplog.at_level(logging.WARNING):
            other.tar(shards[4]).close()
        assert store._local(shards[2]).exists()
        assert "leave no room" in caplog.text
        assert len(held.read()) == shards[2].bytes
    other.tar(shards[0]).close()
    assert not store._local(shards[2]).exists()
    assert used(tmp_path / "cache") <= bound


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
    assert server.failing.wait(120)  # the third shard is being opened ahead
    steps.close()  # type: ignore[attr-defined]
    stream.close()
    server.always.clear()
    again = Stream(
        server.url, "train", global_batch=2, window=2, cache=tmp_path / "cache", shuffle=False
    )
    assert sum(len(part.index) for (part,) in again.epoch(0)) == sum(SIZES)


def test_a_transfer_that_nobody_continues_makes_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 4096)
    shards = read_manifest(server.folder).splits["train"]
    store = Remote(server.url, tmp_path / "cache", 1.2 * max(shard.bytes for shard in shards) / 1e9)
    server.faults[TAR].extend(["", "dead"])
    with pytest.raises(ConnectionError):
        store.tar(shards[2])
    assert len(list((tmp_path / "cache").glob("*.part"))) == 1
    store.tar(shards[1]).close()
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_cache_that_cannot_hold_two_windows_is_refused(server, tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot hold two windows of 2 shards; give at least cache_gb="
    ):
        read_all(server.url, tmp_path / "cache", cache_gb=1e-5)


def test_urls_and_contents_do_not_share_a_name(server, tmp_path):
    first, second = read_manifest(server.folder).splits["train"][:2]
    one, two = (Remote(server.url + path, tmp_path / "cache", 1) for path in ("", "/other"))
    assert len({one._local(first), one._local(second), two._local(first)}) == 3
    assert one._local(first) == Remote(server.url + "/", tmp_path / "cache", 1)._local(first)


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


QUIET = (
    "ignore::DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)  # of the S3 libraries


@pytest.fixture
def bucket(server) -> Iterator[Server]:
    """The folder in a bucket of an S3 server on this machine, behind a relay that fails."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    made = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    files = s3fs.S3FileSystem(**s3_options(port), skip_instance_cache=True)
    if not files.exists("shards"):  # all of moto's servers in a process share their buckets
        files.mkdir("shards")
    for path in server.folder.iterdir():
        files.pipe_file(f"shards/data/{path.name}", path.read_bytes())
    with serving(Server(server.folder, Relay)) as relay:
        relay.upstream = (host, port)
        yield relay
    made.stop()


def s3_options(port: int) -> dict[str, str]:
    return {"endpoint_url": f"http://127.0.0.1:{port}", "key": "testing", "secret": "testing"}


def read_bucket(bucket: Server, cache: Path, **more) -> list[list[int]]:
    return read_all("s3://shards/data", cache, options=s3_options(bucket.server_port) | more)


@pytest.mark.filterwarnings(*QUIET)
def test_s3_gives_what_its_folder_gives(server, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 8192)
    assert read_bucket(bucket, tmp_path / "cache") == everything(server)
    import s3fs

    files = s3fs.S3FileSystem(**s3_options(bucket.upstream[1]), skip_instance_cache=True)
    files.rm(f"shards/data/{TAR}")
    with pytest.raises(DataError, match=f"s3://shards/data/{TAR} does not exist"):
        read_bucket(bucket, tmp_path / "empty")
    body = bytearray((server.folder / TAR).read_bytes())
    files.pipe_file(f"shards/data/{TAR}", bytes(body[:8192]))
    with pytest.raises(DataError, match=rf"{TAR} is damaged: it has 8192 bytes, not {len(body)}"):
        read_bucket(bucket, tmp_path / "cut")
    body[700] ^= 1
    files.pipe_file(f"shards/data/{TAR}", bytes(body))
    with pytest.raises(DataError, match="checksum is wrong"):
        read_bucket(bucket, tmp_path / "wrong")


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("fault", ["500", "503", "reset", "truncated", "slow"])
def test_faults_of_s3_that_pass_are_waited_for(server, bucket, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK", 8192)
    for name in ("manifest.json", INDEX, TAR):
        bucket.faults[name].extend([fault, "", fault])
    patience = {"config_kwargs": {"read_timeout": 0.5, "retries": {"max_attempts": 0}}}
    assert read_bucket(bucket, tmp_path / "cache", **patience) == everything(server)
    assert not bucket.faults[TAR]


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("fault", ["500", "403", "truncated"])
def test_faults_of_s3_that_stay_name_the_url(bucket, tmp_path, fault, monkeypatch):
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    bucket.always[TAR] = fault
    with pytest.raises(ConnectionError, match=rf"could not fetch s3://shards/data/{TAR}"):
        read_bucket(bucket, tmp_path / "cache")
