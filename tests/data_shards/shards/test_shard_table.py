"""Manifests of very many shards: a table beside a small JSON, of which a stream reads what it
needs."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from safetensors.numpy import load, save
from shard_server import Server, everything, read_all, serving

from core.files import sha256_of_bytes
from data_shards import stream as streams
from data_shards.reading.storage import Folder
from data_shards.shards import manifest as manifests
from data_shards.shards import shard_table
from data_shards.shards.manifest import DataError, Manifest, Shard, read_manifest, write_manifest
from data_shards.shards.shard_table import ShardTable, TableFile, table_bytes
from data_shards.stream import Stream
from data_shards.verify import verify

SIZES = (4, 3, 5, 2, 6)


@pytest.fixture
def few(monkeypatch) -> None:
    """Manifests of more than three shards have tables."""
    monkeypatch.setattr(manifests, "MANY", 3)


@pytest.fixture
def folder(few, make_shards, tmp_path) -> Path:
    """Shards whose manifest has a table, and beside it the same manifest without."""
    made = tmp_path / "shards"
    listed = make_shards(made, SIZES)
    write_manifest(made, listed, listed.to_json())
    return made


def test_a_table_gives_what_the_list_gives(folder, make_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "MANY", 1000)
    listed = make_shards(tmp_path / "listed", SIZES)
    found = read_manifest(folder)
    shards = found.splits["train"]
    assert isinstance(shards, ShardTable)
    assert tuple(shards) == listed.splits["train"]
    assert shards[1:3] == listed.splits["train"][1:3]
    assert shards[-1] == listed.splits["train"][-1]
    assert found.samples("train") == sum(SIZES)
    assert "train-000000" not in (folder / "manifest.json").read_text()
    assert read_all(str(folder), tmp_path) == read_all(str(tmp_path / "listed"), tmp_path)
    assert pickle.loads(pickle.dumps(found)) == found


def test_a_manifest_with_tables_is_written_again(folder):
    manifest = read_manifest(folder)
    changed = replace(manifest, extras={"note": "more"})
    before = (folder / "train.shards").read_bytes()
    write_manifest(folder, changed, changed.to_json())
    assert read_manifest(folder) == changed
    assert (folder / "train.shards").read_bytes() == before


def test_a_table_is_fetched_from_a_url(folder, tmp_path, impatient_server):
    with serving(Server(folder)) as server:
        assert read_all(server.url, tmp_path / "cache") == everything(server)
        before = len(server.asked)
        read_all(server.url, tmp_path / "cache")
        assert {name for name, _ in server.asked[before:]} == {"manifest.json"}


@pytest.fixture
def impatient_server(monkeypatch) -> None:
    import tenacity

    from data_shards.reading import remote

    retry = {"stop": tenacity.stop_after_attempt(2), "wait": tenacity.wait_none()}
    monkeypatch.setattr(remote, "RETRY", retry)


def test_verification_reads_the_table(folder):
    assert [finding.corruption for finding in verify(folder, deep=True)] == [""] * len(SIZES)


@pytest.mark.parametrize("change", ["missing", "damaged", "cut"])
def test_a_lost_table_is_named(folder, change):
    path = folder / "train.shards"
    body = bytearray(path.read_bytes())
    body[-5] ^= 1
    if change == "missing":
        path.unlink()
    else:
        path.write_bytes(body if change == "damaged" else body[:-8])
    with pytest.raises(DataError, match=r"train\.shards is (missing|damaged)"):
        read_manifest(folder)


def spoil_names(columns: dict[str, np.ndarray], row: int, name: bytes) -> None:
    columns["names"] = columns["names"].copy()
    columns["names"][row] = np.frombuffer(name.ljust(columns["names"].shape[1], b"\0"), np.uint8)


SPOILT = {
    "a path": lambda c: spoil_names(c, 1, b"../train-01.tar"),
    "hidden": lambda c: spoil_names(c, 1, b".train-0001.tar"),
    "no tar": lambda c: spoil_names(c, 1, b"train-000001.zip"),
    "a hole": lambda c: spoil_names(c, 1, b"train\0000001.tar"),
    "empty": lambda c: spoil_names(c, 1, b""),
    "twice": lambda c: spoil_names(c, 1, b"train-000000.tar"),
    "no samples": lambda c: c.update(samples=np.zeros_like(c["samples"])),
    "other samples": lambda c: c.update(samples=c["samples"][::-1] + 1),
    "too large": lambda c: c.update(bytes=c["bytes"] + 2**60),
    "floats": lambda c: c.update(samples=c["samples"].astype(np.float64)),
    "short": lambda c: c.update(bytes=c["bytes"][:-1]),
    "long digests": lambda c: c.update(sha256=np.zeros((len(SIZES), 64), np.uint8)),
    "a column less": lambda c: c.pop("index_sha256"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_table_that_cannot_be_right_is_refused(folder, what):
    path = folder / "train.shards"
    columns = load(path.read_bytes())
    SPOILT[what](columns)
    body = save({name: np.ascontiguousarray(column) for name, column in columns.items()})
    path.write_bytes(body)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tables"]["train"] |= {"bytes": len(body), "sha256": sha256_of_bytes(body)}
    del manifest["checksum"]
    manifest["checksum"] = manifests._checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json: train\.shards is no table of shards"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../train.shards"}, "no plain name"),
        ({"file": "other.shards"}, "no plain name"),
        ({"sha256": "abc"}, "shards"),
        ({"shards": 0}, "0 shards"),
        ({"shards": "5"}, "expected int"),
        ({"surprise": 1}, "unknown 'surprise'"),
    ],
)
def test_what_a_manifest_says_of_a_table_is_checked(folder, change, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tables"]["train"] |= change
    del manifest["checksum"]
    manifest["checksum"] = manifests._checksum(manifest)
    with pytest.raises(DataError, match=message):
        Manifest.from_json(json.dumps(manifest), "m.json", lambda table: folder / table.file)


def test_a_shard_in_two_tables_is_refused(few, make_shards, tmp_path):
    made = make_shards(tmp_path, SIZES)
    shards = made.splits["train"]
    manifest = replace(made, splits={"train": shards, "valid": shards[2:]})
    write_manifest(tmp_path, manifest, manifest.to_json())
    with pytest.raises(DataError, match="listed twice"):
        read_manifest(tmp_path)


class OneForAll(Folder):
    """A folder in which one shard stands for all."""

    def open_tar(self, shard: Shard) -> IO[bytes]:
        opened.add(shard.name)
        return super().open_tar(replace(shard, name="train-000000.tar"))

    def read_index(self, shard: Shard) -> bytes:
        return super().read_index(replace(shard, name="train-000000.tar"))


opened: set[str] = set()


def test_a_stream_of_very_many_shards_touches_few(make_shards, tmp_path, monkeypatch):
    count = 100_000
    few = make_shards(tmp_path, (8,))
    (one,) = few.splits["train"]
    body = table_bytes([replace(one, name=f"train-{number:06d}.tar") for number in range(count)])
    table = TableFile("train.shards", len(body), sha256_of_bytes(body), count, 8 * count)
    (tmp_path / "train.shards").write_bytes(body)
    many = replace(few, splits={"train": ShardTable(tmp_path / "train.shards", table, "here")})
    text = many.to_json()
    (tmp_path / "manifest.json").write_text(text)
    assert len(text) < 3000
    opened.clear()
    monkeypatch.setattr(streams, "open_store", lambda *_: OneForAll(tmp_path))
    monkeypatch.setattr(ShardTable, "__iter__", None)  # nobody looks at all of them

    stream = Stream(tmp_path, "train", global_batch=16, window=4, prefetch=0)
    steps = stream.epoch(0)
    for _ in range(6):
        (part,) = next(steps)
        assert len(part.index) == 16
    steps.close()  # type: ignore[attr-defined]
    assert len(opened) == 12
    stream.load_state_dict(stream.state_dict() | {"samples": 16 * (stream.steps() - 1)})
    assert len(list(stream.epoch(0))) == 1
    assert len(opened) <= 12 + 8
    assert len(stream) == 8 * count
    stream.close()


def test_few_shards_stay_in_the_manifest(make_shards, tmp_path):
    manifest = make_shards(tmp_path, SIZES)
    assert shard_table.MANY >= 10_000
    assert manifest.tables() == {}
    assert "tables" not in json.loads(manifest.to_json())
