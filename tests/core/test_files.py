"""A file is whole or absent, and its checksum is the known one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core import files

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example 1


def test_text_and_bytes_are_written_whole_and_nothing_else_stays(tmp_path):
    files.write_atomically(tmp_path / "a.txt", "ü\n")
    files.write_atomically(tmp_path / "b.bin", b"\0\xff")
    assert (tmp_path / "a.txt").read_bytes() == "ü\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\0\xff"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.bin"]


def _write_half(path: Path) -> None:
    with files.atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_a_failure_leaves_the_earlier_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "before")
    with pytest.raises(KeyboardInterrupt):
        _write_half(path)
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(path, "\ud800")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_contents_are_on_disk_before_the_name_is_and_the_name_before_the_end(
    tmp_path, monkeypatch
):
    happened = []
    replace = os.replace
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: happened.append("fsync"))
    monkeypatch.setattr(
        files.os, "replace", lambda old, new: (happened.append("replace"), replace(old, new))
    )
    files.write_atomically(tmp_path / "a", "x")
    assert happened == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(("content", "digest"), [(b"", EMPTY), (b"abc", ABC)])
def test_checksums_of_bytes_and_files_agree_with_the_standard(tmp_path, content, digest):
    path: Path = tmp_path / "file"
    path.write_bytes(content)
    assert files.sha256_of_bytes(content) == files.sha256_of_file(path) == digest


def test_the_checksum_of_an_open_file_covers_it_from_its_start(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4096)  # more than one piece
    with path.open("rb") as file:
        file.seek(100)
        assert files.sha256_of_open_file(file) == files.sha256_of_bytes(path.read_bytes())
        assert file.tell() == 100
