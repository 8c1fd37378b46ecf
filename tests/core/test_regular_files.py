"""Pipes, devices and sockets are refused by kind, without waiting, at every function that reads."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from core.command import Refused
from core.file_access.budget import Budget
from core.file_access.regular_files import (
    check_regular_file,
    check_regular_files_in,
    open_regular_file,
    read_regular_file,
    read_regular_text,
)

READERS: list[Callable[[Path], object]] = [
    check_regular_file,
    open_regular_file,
    read_regular_file,
    read_regular_text,
]


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def _link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(here)


KINDS = [
    (_folder, "is a folder"),
    (_pipe, "is a named pipe"),
    (_link_to_pipe, "is a named pipe"),
    (_link_to_device, "is a device"),
    (_socket, "is a socket"),
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_what_is_no_plain_file_is_refused_by_kind(
    tmp_path: Path, make: Callable[[Path], None], kind: str, read: Callable[[Path], object]
):
    path = tmp_path / "input"
    make(path)
    with pytest.raises(Refused, match=rf"input {kind}, and only plain files are read"):
        read(path)


@pytest.mark.parametrize("read", READERS)
def test_what_is_not_there_is_an_error_with_its_path(
    tmp_path: Path, read: Callable[[Path], object]
):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for path in (tmp_path / "gone", loop, tmp_path / ("a" * 300)):
        with pytest.raises(OSError, match=r".") as caught:
            read(path)
        assert str(caught.value.filename) == str(path)
    with pytest.raises(Refused, match="cannot be the name"):
        read(Path("a\0b"))


def test_plain_files_and_links_to_them_are_read(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf\xc3\xa9")
    (tmp_path / "link").symlink_to("file")
    with open_regular_file(tmp_path / "link") as file:
        assert file.read() == b"\xef\xbb\xbf\xc3\xa9"
    assert read_regular_text(str(tmp_path / "link")) == "é"
    assert read_regular_file(tmp_path / "file", limit=5) == b"\xef\xbb\xbf\xc3\xa9"
    with pytest.raises(Refused, match="file has 5 bytes; at most 4 are read"):
        read_regular_file(tmp_path / "file", limit=4)
    (tmp_path / "file").write_bytes(b"a\xff")
    with pytest.raises(Refused, match=r"file is no text in UTF-8 \(byte 1 is 0xff\)"):
        read_regular_text(tmp_path / "file")


def test_a_folder_is_looked_through_for_what_a_library_would_open(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "folder").mkdir()
    check_regular_files_in(tmp_path)
    os.mkfifo(tmp_path / "vocab.txt")
    with pytest.raises(Refused, match=r"vocab.txt is a named pipe"):
        check_regular_files_in(tmp_path)


def test_a_budget_counts_and_refuses_before_anything_is_taken():
    budget = Budget(10, "a.npz", "store it unpacked")
    budget.claim(4, "one")
    with pytest.raises(
        Refused, match=r"a.npz: two asks for 7 bytes.*6 of 10 are left\); store it unpacked"
    ):
        budget.claim(7, "two")
    with pytest.raises(Refused, match="-1 bytes"):
        budget.claim(-1, "three")
    budget.claim(6, "four")
    assert Budget.of_packed(1 << 20, "b").limit == 164 << 20
