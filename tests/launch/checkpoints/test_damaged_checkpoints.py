"""Damaged checkpoints, disks that are full or lie, and files of another kind: what is not whole is
told by name, and the newest whole one is taken."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_checkpoints import names_in, plain_checkpoints, save_step

from launch.checkpoints import commit
from launch.checkpoints.store import SaveError, read_state, verify
from launch.checkpoints.tensors import load_weights
from launch.config import ConfigError

DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda folder: os.truncate(folder / "rank-00000.safetensors", 100),
    "one bit": lambda folder: _flip(folder / "rank-00000.safetensors"),
    "a file gone": lambda folder: (folder / "rank-00000.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "manifest cut off": lambda folder: os.truncate(folder / "manifest.json", 30),
    "manifest of another kind": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "state edited": lambda folder: _edit(folder / "state.json"),
    "a file more": lambda folder: (folder / "rank-00001.safetensors").write_bytes(b"x"),
}


def _flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(bytes(body))


def _edit(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_newest_whole_one_by_name(
    tmp_path: Path, damage: str
):
    save_step(tmp_path, 1, "last")
    DAMAGES[damage](save_step(tmp_path, 2, "last"))
    found, complaints = plain_checkpoints(tmp_path, 0).find("last")
    assert found == tmp_path / "checkpoints/step-00000001"
    assert len(complaints) == 1
    assert "step-00000002" in complaints[0]


def test_a_checkpoint_that_was_renamed_but_not_pointed_to_is_found(tmp_path: Path):
    save_step(tmp_path, 1, "last")
    save_step(tmp_path, 2)  # the process died before it wrote the pointer
    assert plain_checkpoints(tmp_path, 0).find("last") == (
        tmp_path / "checkpoints/step-00000002",
        [],
    )


def test_a_folder_left_by_a_killed_process_is_no_checkpoint_and_goes_with_the_next_save(
    tmp_path: Path,
):
    save_step(tmp_path, 1, "last")
    left = tmp_path / "checkpoints/.step-00000002.partial"
    shutil.copytree(tmp_path / "checkpoints/step-00000001", left)
    assert plain_checkpoints(tmp_path, 0).find("last")[0] == tmp_path / "checkpoints/step-00000001"
    save_step(tmp_path, 2, "last")
    assert not left.exists()


def test_a_full_disk_leaves_the_checkpoint_before_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = save_step(tmp_path, 1, "last")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(commit.os, "fsync", full)
    with pytest.raises(SaveError, match="No space left.*step-00000001 before it is untouched"):
        save_step(tmp_path, 2, "last")
    monkeypatch.undo()
    assert plain_checkpoints(tmp_path, 0).find("last") == (before, [])
    assert names_in(tmp_path) == ["last", "step-00000001"]


def test_a_file_that_the_disk_changed_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = os.fsync

    def lose_the_end(descriptor: int) -> None:
        real(descriptor)
        if os.fstat(descriptor).st_size > 500 and os.path.isfile(f"/proc/self/fd/{descriptor}"):
            os.ftruncate(descriptor, 400)

    monkeypatch.setattr(commit.os, "fsync", lose_the_end)
    with pytest.raises(SaveError, match="does not read back"):
        save_step(tmp_path, 1, "last")


def test_a_checkpoint_holds_no_code_and_one_with_code_is_refused(tmp_path: Path):
    folder = save_step(tmp_path, 1, "last")
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    torch.save(
        {"a": print}, folder / "rank-00000.safetensors"
    )  # a pickle under the name of a tensor file
    path = folder / "rank-00000.safetensors"
    entry = commit.write_file(path, [path.read_bytes()])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][entry.pop("name")] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    verify(folder)
    with pytest.raises(ConfigError, match="no safetensors file"):
        load_weights(folder, {"weight": [2, 3], "bias": [2]}, torch.nn.Linear(3, 2))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "missing"])
def test_a_manifest_reaches_no_file_outside_its_folder(tmp_path: Path, name: str):
    folder = save_step(tmp_path, 1, "last")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="lacks"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"version": 1}, "reads"),
        ({"progress": {"step": "many"}}, "step"),
        ({"shapes": 3}, "shapes"),
        (None, "Expecting"),
    ],
)
def test_a_state_of_another_kind_is_refused(
    tmp_path: Path, change: dict[str, Any] | None, what: str
):
    path = save_step(tmp_path, 1) / "state.json"
    path.write_text(
        "no json" if change is None else json.dumps(json.loads(path.read_text()) | change)
    )
    with pytest.raises(ConfigError, match=what):
        read_state(path.parent)


def test_weights_of_another_model_are_refused_by_parameter(tmp_path: Path):
    folder = save_step(tmp_path, 1)
    shapes = read_state(folder).shapes
    with pytest.raises(
        ConfigError, match=r"weight \(\[2, 3\] in the checkpoint, \[2, 4\] in the model\)"
    ):
        load_weights(folder, shapes, torch.nn.Linear(4, 2))
