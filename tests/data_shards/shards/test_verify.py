"""``python -m data_shards.verify`` finds every kind of damage, and says nothing about what is
sound."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.indexing.folder_indexer import Stated, index_folder
from data_shards.shards.canonical import is_canonical
from data_shards.shards.index_table import Index
from data_shards.shards.manifest import Field, Manifest, Sample, read_manifest
from data_shards.shards.writer import write_shard
from data_shards.verify import main, verify

ARRAYS = Stated(task="arrays")


@pytest.fixture
def folder(make_shards, tmp_path) -> Path:
    make_shards(tmp_path, (4, 3, 5))
    return tmp_path


@pytest.mark.parametrize("deep", [[], ["--deep"]])
def test_a_sound_folder_passes(folder, deep, capsys):
    assert main([str(folder), *deep]) == 0
    said = capsys.readouterr()
    assert "3 files checked" in said.out
    assert "all sound" in said.out


@pytest.mark.parametrize("deep", [[], ["--deep"]])
@pytest.mark.parametrize("name", ["train-000001.tar", "train-000002.idx"])
def test_each_damaged_file_is_one_line(folder, deep, name, capsys):
    path = folder / name
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    (folder / "train-000000.tar").unlink()
    assert main([str(folder), *deep]) == 1
    said = capsys.readouterr()
    first, second = (line for line in said.err.splitlines() if str(folder) in line)
    assert "train-000000.tar is missing" in first
    assert name in second
    assert "2 damaged" in said.out


def test_damage_names_the_sample_and_its_bytes(folder):
    path = folder / "train-000001.tar"
    index = Index.from_bytes(path.with_suffix(".idx").read_bytes(), "x")
    body = bytearray(path.read_bytes())
    start, end = index.table[2, :2].tolist()
    body[start + 700] ^= 1
    path.write_bytes(body)
    (damage,) = (finding.corruption for finding in verify(folder) if finding.corruption)
    assert f"sample 'train_00000006' in bytes {start} to {end}" in damage


def republish(folder: Path, number: int, body: bytes) -> None:
    """Put another index in place and let the manifest vouch for it."""
    manifest = read_manifest(folder)
    shards = list(manifest.splits["train"])
    shards[number] = replace(shards[number], index_sha256=hashlib.sha256(body).hexdigest())
    (folder / shards[number].name).with_suffix(".idx").write_bytes(body)
    (folder / "manifest.json").write_text(
        replace(manifest, splits={"train": tuple(shards)}).to_json()
    )


def test_deep_finds_an_index_that_describes_another_tar(folder, capsys):
    index = Index.from_bytes((folder / "train-000001.idx").read_bytes(), "x")
    index.table.setflags(write=True)
    index.table[1, index.column("audio")] -= 4
    republish(folder, 1, index.to_bytes())
    assert main([str(folder)]) == 0
    capsys.readouterr()
    assert main([str(folder), "--deep"]) == 1
    assert "does not describe its tar: sample 'train_00000005', column" in capsys.readouterr().err


def test_deep_finds_keys_that_repeat(tmp_path, capsys):
    shards = tuple(
        write_shard(tmp_path, f"x-{i}.tar", [("same", Sample("s", {"a": np.zeros(1)}))])
        for i in range(2)
    )
    manifest = Manifest("x", "arrays", {"a": Field("float64", (1,))}, {"x": shards})
    (tmp_path / "manifest.json").write_text(manifest.to_json())
    assert main([str(tmp_path), "--deep"]) == 1
    assert "1 keys appear in more than one shard, such as 'same'" in capsys.readouterr().err


def test_deep_counts_numbers_that_are_not_finite(tmp_path, capsys):
    array = np.array([1, np.nan, np.inf, 2], np.float32)
    shard = write_shard(tmp_path, "x-0.tar", [("k", Sample("s", {"a": array}))])
    (tmp_path / "manifest.json").write_text(
        Manifest("x", "arrays", {"a": Field("float32", (4,))}, {"x": (shard,)}).to_json()
    )
    assert main([str(tmp_path), "--deep"]) == 0
    assert "field 'a' holds 2 numbers that are not finite" in capsys.readouterr().out


def test_further_files_are_checked_too(folder, capsys):
    (folder / "codebook.npz").write_bytes(b"centres")
    manifest = read_manifest(folder)
    extras = {"codebook.npz": hashlib.sha256(b"centres").hexdigest(), "note": "a fact"}
    (folder / "manifest.json").write_text(replace(manifest, extras=extras).to_json())
    assert main([str(folder)]) == 0
    (folder / "codebook.npz").write_bytes(b"other")
    assert main([str(folder)]) == 1
    assert "codebook.npz is damaged" in capsys.readouterr().err
    (folder / "codebook.npz").unlink()
    assert main([str(folder)]) == 1
    assert "codebook.npz is missing" in capsys.readouterr().err


def test_a_folder_without_manifest_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "has no manifest.json" in capsys.readouterr().err


def test_our_own_tars_are_compared_as_a_whole_and_others_walked_through(folder):
    """The quick comparison must say no to every tar and index that differ in any way, and yes to
    what was written."""
    path = folder / "train-000001.tar"
    index = Index.from_bytes(path.with_suffix(".idx").read_bytes(), "x")
    tar = np.frombuffer(path.read_bytes(), np.uint8).copy()
    assert is_canonical(tar, index)
    for at in range(0, len(tar), 101):  # headers, names, numbers, padding and the end mark
        tar[at] ^= 4
        assert not is_canonical(tar, index), at
        tar[at] ^= 4
    index.table.setflags(write=True)
    for row, column in np.ndindex(index.table.shape):
        index.table[row, column] += 1
        assert not is_canonical(tar, index), (row, column)
        index.table[row, column] -= 1
    assert is_canonical(tar, index)
    assert not is_canonical(tar[:-512], index)


def test_deep_reads_foreign_tars_too(tmp_path, capsys):
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / f"t-{form}.tar", "w", format=form) as tar:
            info = tarfile.TarInfo(f"a folder/clip {form}.json")
            info.size, info.mtime = 2, 1.5
            tar.addfile(info, io.BytesIO(b"{}"))
    index_folder(tmp_path, ARRAYS)
    assert main([str(tmp_path), "--deep"]) == 0
    assert "all sound" in capsys.readouterr().out


def test_deep_finds_records_that_are_no_json(tmp_path, capsys):
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("clip.json")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"[1]"))
    index_folder(tmp_path, ARRAYS)
    assert main([str(tmp_path), "--deep"]) == 1
    assert "not an object" in capsys.readouterr().err
