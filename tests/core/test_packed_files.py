"""Packed files are named as such, with the command that unpacks them, at every door."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core.command import Refused
from core.file_access.packed_files import check_not_packed
from data_shards.array_files import map_npy
from data_shards.convert import convert
from data_shards.shards.index_table import Index
from data_shards.shards.tar import members

CONTENT = b"id,split,label\n" * 20
ZSTD = b"\x28\xb5\x2f\xfd\x04\x00" + bytes(20)
LZ4 = b"\x04\x22\x4d\x18" + bytes(20)


def _zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", content)
    return buffer.getvalue()


def _tar_gz(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


# named, because some hold the time at which they were packed
PACKED_IDS = ["gzip", "bzip2", "bzip2-empty", "xz", "zstd", "lz4", "zip", "tar.gz"]
PACKED = [
    (gzip.compress(CONTENT), "gzip -dc"),
    (bz2.compress(CONTENT), "bzip2 -dc"),
    (bz2.compress(b""), "bzip2 -dc"),
    (lzma.compress(CONTENT), "xz -dc"),
    (ZSTD, "zstd -dc"),
    (LZ4, "lz4 -dc"),
    (_zip(CONTENT), "unzip -p"),
    (_tar_gz(CONTENT), "gzip -dc"),
]


@pytest.mark.parametrize(("body", "command"), PACKED, ids=PACKED_IDS)
def test_the_command_is_named(body: bytes, command: str):
    with pytest.raises(Refused, match=r"^a b\.pkl is packed with") as caught:
        check_not_packed(body[:16], "a b.pkl")
    assert str(caught.value).endswith(f"unpack it first: {command} 'a b.pkl' > 'a b_unpacked.pkl'")


@pytest.mark.parametrize("body", [b"", b"BZh is a name,split\n", b"\x1f", b"PK,b\n", b"id,split\n"])
def test_what_only_begins_alike_is_not_packed(body: bytes):
    check_not_packed(body, "a.csv")


def test_the_command_gives_the_contents(tmp_path: Path):
    for suffix in ("pkl", "tar.gz", "tgz"):
        path = tmp_path / f"a b.{suffix}"
        path.write_bytes(gzip.compress(CONTENT))
        with pytest.raises(Refused) as caught:
            check_not_packed(path.read_bytes(), path)
        command = str(caught.value).partition("first: ")[2]
        subprocess.run(command, shell=True, check=True)
    unpacked = [tmp_path / "a b_unpacked.pkl", tmp_path / "a b.tar"]
    assert [path.read_bytes() for path in unpacked] == [CONTENT] * 2


def _convert(path: Path) -> object:
    return convert(path, path.parent / "out")


DOORS: list[tuple[str, Callable[[Path], object]]] = [
    ("a.pkl", _convert),
    ("a.csv", _convert),
    ("a.jsonl", _convert),
    ("a.parquet", _convert),
    ("a.pkl.gz", _convert),
    ("a.tgz", _convert),
    ("a.npy", map_npy),
    ("a.tar", lambda path: list(members(path.read_bytes(), str(path)))),
    ("a.idx", lambda path: Index.from_bytes(path.read_bytes(), str(path))),
]


@pytest.mark.parametrize(("name", "door"), DOORS)
@pytest.mark.parametrize(("body", "command"), PACKED[:6], ids=PACKED_IDS[:6])
def test_every_door_tells_a_packed_file(
    tmp_path: Path, name: str, door: Callable[[Path], object], body: bytes, command: str
):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(Refused, match=rf"{name} is packed with .*; unpack it first: {command}"):
        door(tmp_path / name)
