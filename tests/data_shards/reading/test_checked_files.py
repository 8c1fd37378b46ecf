"""A shard is hashed once per machine: later processes believe the record of its size, time and
inode, and nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from shard_server import everything, read_all
from streams import SIZES

from data_shards.reading import checked_files, open_shards
from data_shards.reading.checked_files import CheckedFiles
from data_shards.shards.manifest import DataError
from data_shards.stream import Stream
from data_shards.verify import verify


@pytest.fixture
def hashed(monkeypatch, tmp_path) -> list[str]:
    """The files that were hashed to be read, with records in a cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    names: list[str] = []
    compute = open_shards.sha256_of_open_file

    def counting(file):
        names.append(Path(file.name).name)
        return compute(file)

    monkeypatch.setattr(open_shards, "sha256_of_open_file", counting)
    return names


@pytest.fixture
def folder(make_shards, tmp_path) -> Path:
    """Shards that were written an hour ago."""
    made = tmp_path / "shards"
    make_shards(made, SIZES)
    for path in made.glob("*.tar"):
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))
    return made


def read(folder: Path) -> None:
    stream = Stream(folder, "train", global_batch=4, window=2)
    for _ in stream.epoch(0):
        pass
    stream.close()


def test_a_second_process_does_not_hash_again(folder, hashed):
    read(folder)
    assert sorted(hashed) == sorted(path.name for path in folder.glob("*.tar"))
    read(folder)  # a stream of its own, as another process has
    assert len(hashed) == len(SIZES)


def test_a_file_that_changed_is_hashed_again(folder, hashed):
    read(folder)
    path = folder / "train-000001.tar"
    body = bytearray(path.read_bytes())
    body[700] ^= 1
    path.write_bytes(body)
    with pytest.raises(DataError, match=r"train-000001\.tar is damaged: its checksum is wrong"):
        read(folder)
    body[700] ^= 1
    path.write_bytes(body)
    hashed.clear()
    read(folder)
    assert hashed == [path.name]


def test_a_record_is_of_one_content(folder, hashed):
    read(folder)
    stream = Stream(folder, "train", global_batch=4, window=2)
    opened = stream.reader.open_shards
    opened.shards = tuple(replace(shard, sha256="0" * 64) for shard in opened.shards)
    with pytest.raises(DataError, match="checksum is wrong"):
        opened.get(0)
    stream.close()


def test_verification_hashes_whatever_is_recorded(folder, hashed):
    read(folder)
    path = folder / "train-000001.tar"
    before = path.stat()
    body = bytearray(path.read_bytes())
    body[700] ^= 1
    path.write_bytes(body)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = [finding.corruption for finding in verify(folder) if finding.corruption]
    (corruption,) = found
    assert "train-000001.tar is damaged" in corruption


def test_a_file_that_was_just_written_is_not_recorded(make_shards, tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(checked_files, "TICK", 3600 * 10**9)
    make_shards(tmp_path / "new", SIZES)
    read(tmp_path / "new")
    read(tmp_path / "new")
    assert len(hashed) == 2 * len(SIZES)


def test_what_is_downloaded_is_hashed_as_it_comes(server, tmp_path, hashed):
    cache = tmp_path / "cache"
    assert read_all(server.url, cache) == everything(server)
    hashed.clear()  # of the folder
    assert read_all(server.url, tmp_path / "other") == read_all(server.url, cache)
    assert hashed == []


def status_of(path: Path) -> os.stat_result:
    """Of a file that was written an hour ago."""
    path.write_bytes(b"content")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))
    return path.stat()


def test_records_of_one_process_are_seen_by_another(tmp_path):
    status = status_of(tmp_path / "file")
    one, other = (CheckedFiles(tmp_path / "records.bin") for _ in range(2))
    assert not one.knows(status, "a" * 64)
    assert not other.knows(status, "a" * 64)
    one.add(status, "a" * 64)
    assert one.knows(status, "a" * 64)
    assert other.knows(status, "a" * 64)
    assert not other.knows(status, "b" * 64)


def test_damaged_records_are_not_believed(tmp_path):
    status = status_of(tmp_path / "file")
    path = tmp_path / "records.bin"
    CheckedFiles(path).add(status, "a" * 64)
    record = path.read_bytes()
    path.write_bytes(record[:40])  # a process was killed while it wrote
    assert not CheckedFiles(path).knows(status, "a" * 64)
    CheckedFiles(path).add(status, "a" * 64)
    assert path.read_bytes() == record
    spoilt = bytearray(record)
    spoilt[40] ^= 1
    path.write_bytes(spoilt)
    assert not CheckedFiles(path).knows(status, "a" * 64)


def test_records_that_others_can_write_are_not_believed(tmp_path):
    status = status_of(tmp_path / "file")
    path = tmp_path / "records.bin"
    CheckedFiles(path).add(status, "a" * 64)
    path.chmod(0o666)
    assert not CheckedFiles(path).knows(status, "a" * 64)


def test_the_oldest_records_go(tmp_path, monkeypatch):
    monkeypatch.setattr(checked_files, "MOST", 8)
    status = status_of(tmp_path / "file")
    path = tmp_path / "records.bin"
    records, reader = CheckedFiles(path), CheckedFiles(path)
    for number in range(20):
        records.add(status, f"{number:064x}")
        assert reader.knows(status, f"{number:064x}")
        assert path.stat().st_size <= 9 * len(checked_files._record(status, "0" * 64))
    assert not CheckedFiles(path).knows(status, f"{0:064x}")
    assert CheckedFiles(path).knows(status, f"{19:064x}")


def test_without_a_place_for_records_each_process_hashes(folder, hashed, monkeypatch, tmp_path):
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no folder"))
    read(folder)
    read(folder)
    assert len(hashed) == 2 * len(SIZES)
