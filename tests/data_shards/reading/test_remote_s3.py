"""Shards in a bucket of S3, behind a relay that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shard_server import INDEX, TAR, Relay, Server, everything, read_all, serving

from data_shards.reading import remote
from data_shards.shards.manifest import DataError, Shard

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
def test_what_is_too_large_is_refused_before_any_of_it_is_read(bucket, tmp_path, monkeypatch):
    """The libraries of S3 read an answer whole, so the size is asked for first."""
    monkeypatch.setattr(remote, "SMALL", 100)
    store = remote.Remote("s3://shards/data", tmp_path, 1.0, s3_options(bucket.server_port))
    with pytest.raises(DataError, match=r"s3://shards/data/manifest\.json has more than 100 bytes"):
        store.read_manifest()
    shard = Shard(TAR, 1, 2000, "0" * 64, "0" * 64)
    with pytest.raises(DataError, match=rf"{TAR} is damaged: it has \d+ bytes, not 2000"):
        store.open_tar(shard)
    assert bucket.asked == []  # only for heads
    assert [path for path in tmp_path.rglob("*.part")] == []


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize("fault", ["500", "403", "truncated"])
def test_faults_of_s3_that_stay_name_the_url(bucket, tmp_path, fault, monkeypatch):
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    bucket.always[TAR] = fault
    with pytest.raises(ConnectionError, match=rf"could not fetch s3://shards/data/{TAR}"):
        read_bucket(bucket, tmp_path / "cache")
