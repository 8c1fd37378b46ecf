"""Targets of commands: what cannot be written is refused before anything is computed."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from core.command import Refused, is_no_room
from core.json_files import read_json, read_json_object
from core.targets import check_file, check_folder, check_new_folder

Check = Callable[..., None]


@pytest.mark.parametrize(
    ("check", "target", "reason"),
    [
        (check_new_folder, "folder", "is there already; remove it"),
        (check_new_folder, "file", "is there already; remove it"),
        (check_new_folder, "dangling", "is there already; remove it"),
        (check_new_folder, "file/new", "file is no folder"),
        (check_new_folder, "/proc/new", "/proc/new cannot be written"),
        (check_folder, "file", "is no folder; give the name of one"),
        (check_folder, "pipe", "is no folder; give the name of one"),
        (check_folder, "file/new/deep", "file is no folder"),
        (check_folder, "/proc/new", "/proc/new cannot be written"),
        (check_file, "folder", "is a folder; give the name of a file in it"),
        (check_file, "pipe", "is no plain file"),
        (check_file, "/dev/null", "is no plain file"),
        (check_file, "none/file", "there is no folder"),
        (check_file, "/proc/new", "/proc/new cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, check: Check, target: str, reason: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Refused, match=reason):
        check(tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("check", "target"),
    [
        (check_new_folder, "new"),
        (check_new_folder, "new/deep"),
        (check_folder, "folder"),
        (check_folder, "new/deep"),
        (check_file, "new"),
        (check_file, "file"),
    ],
)
def test_what_can_be_is_left_as_it_is(tmp_path: Path, check: Check, target: str):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("before")
    before = sorted(tmp_path.rglob("*"))
    check(tmp_path / target)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "before"


@pytest.mark.parametrize("check", [check_new_folder, check_folder, check_file])
def test_a_lack_of_room_is_told_from_a_wrong_name(tmp_path: Path, check: Check):
    with pytest.raises(OSError, match="are needed") as lack:
        check(tmp_path / "new", 1 << 60)
    assert is_no_room(lack.value)
    assert lack.value.filename == str(tmp_path / "new")


@pytest.mark.parametrize(("limit", "room"), [(100, 0), (10_000, 20_000)])
def test_a_limit_on_the_size_of_files_is_seen(tmp_path: Path, limit: int, room: int):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        with pytest.raises(OSError, match=str(tmp_path / "new")) as lack:
            check_file(tmp_path / "new", room)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert lack.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "is no usable JSON"),
        (b"[1, 2]", "holds a list, and an object {...} is expected"),
        (b"3.5", "holds a number"),
        (b'"run"', "holds a word"),
        (b"null", "holds null"),
        (b"true", "holds true"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"a": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' * 200_000, "nested too deeply"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is no usable JSON"),
    ],
)
def test_odd_json_is_refused_with_the_name_of_the_file(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(Refused) as refusal:
        read_json_object(path)
    assert reason in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_other_json_is_read(tmp_path: Path):
    path = tmp_path / "good.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, {"b": null}]}')
    assert read_json_object(path) == read_json(path) == {"a": [1, {"b": None}]}
