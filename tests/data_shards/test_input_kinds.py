"""Pipes, devices and folders where a file should be: each door of data refuses them by kind,
without waiting."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from raw_tables import SCORES
from shard_folders import numbered_shards

from core.command import Refused
from data_shards.array_files import map_npy, npz_keys, read_npz
from data_shards.codebook import CODEBOOK, load_codebooks
from data_shards.convert import convert
from data_shards.indexing.tar_indexer import index_tar
from data_shards.reading.shard_cache import ShardCache
from data_shards.reading.storage import open_store
from data_shards.shards.manifest import MANIFEST, read_manifest
from data_shards.sources.tokens import Tokenizer
from data_shards.stream import Stream
from data_shards.verify import verify


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS = [(_pipe, "a named pipe"), (_link_to_pipe, "a named pipe"), (_link_to_device, "a device")]


def _convert(path: Path) -> object:
    return convert(path, path.parent / "out", SCORES)


def _array_of_a_table(path: Path) -> object:
    table = path.with_name("t.csv")
    table.write_text(f"id,split,label,audio\na,train,1,{path.name}\n")
    return convert(table, path.parent / "out", SCORES)


def _tokenizer(path: Path) -> object:
    return Tokenizer(str(path.parent))


READERS: list[tuple[str, Callable[[Path], object]]] = [
    ("a.pkl", _convert),
    ("a.csv", _convert),
    ("a.jsonl", _convert),
    ("a.parquet", _convert),
    ("a.unknown", _convert),
    ("a.npy", map_npy),
    ("a.npz", lambda path: read_npz(path, "x")),
    ("a.npz", npz_keys),
    ("tokenizer.json", _tokenizer),
    ("a.tar", index_tar),
    ("a.tar", lambda path: ShardCache(path.parent, 1e9).open_if_present(path)),
    (MANIFEST, lambda path: read_manifest(path.parent)),
    (MANIFEST, lambda path: open_store(path.parent).read_manifest()),
]


@pytest.mark.parametrize(("name", "read"), READERS)
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_a_door_refuses_by_kind(
    tmp_path: Path, make: Callable[[Path], None], kind: str, name: str, read: Callable
):
    make(tmp_path / name)
    with pytest.raises(Refused, match=rf"{name} is {kind}, and only plain files are read"):
        read(tmp_path / name)


@pytest.mark.parametrize("link", [False, True])
def test_an_array_of_a_table_is_refused_with_its_row(tmp_path: Path, link: bool):
    os.mkfifo(tmp_path / "pipe.npy")
    if link:
        (tmp_path / "a.npy").symlink_to("pipe.npy")
    path = tmp_path / ("a.npy" if link else "pipe.npy")
    with pytest.raises(Refused, match=r"t.csv, line 2 \('a'\): audio: .*pipe.npy is a named pipe"):
        _array_of_a_table(path)


@pytest.mark.parametrize("suffix", [".tar", ".idx"])
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_a_shard_or_index_that_became_something_else_is_refused(
    tmp_path: Path, make: Callable[[Path], None], kind: str, suffix: str
):
    numbered_shards(tmp_path, (4,))
    path = tmp_path / f"train-000000{suffix}"
    size = path.stat().st_size
    path.unlink()
    make(path)
    assert size > 0
    store, manifest = open_store(tmp_path), read_manifest(tmp_path)
    (shard,) = manifest.splits["train"]
    read = store.open_tar if suffix == ".tar" else store.read_index
    with pytest.raises(Refused, match=rf"train-000000{suffix} is {kind}"):
        read(shard)
    assert any("train-000000" in line for line in map(str, verify(tmp_path)))


def test_a_codebook_that_became_a_pipe_is_refused(tmp_path: Path):
    numbered_shards(tmp_path, (4,))
    manifest = read_manifest(tmp_path)
    os.mkfifo(tmp_path / CODEBOOK)
    vouching = replace(manifest, extras={CODEBOOK: "0" * 64})
    with pytest.raises(Refused, match=f"{CODEBOOK} is a named pipe"):
        load_codebooks(tmp_path, vouching)


def test_links_to_plain_files_are_read(tmp_path: Path):
    data, links = tmp_path / "data", tmp_path / "links"
    numbered_shards(data, (4, 3))
    links.mkdir()
    for path in data.iterdir():
        (links / path.name).symlink_to(path)
    stream = Stream(links, "train", global_batch=7)
    (batch,) = [part for (part,) in stream.epoch(0)]
    stream.close()
    assert sorted(batch.index.tolist()) == list(range(7))
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "b.npy").symlink_to("a.npy")
    assert map_npy(tmp_path / "b.npy").tolist() == [0, 1, 2]
