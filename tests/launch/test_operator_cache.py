"""Each Python environment compiles DeepSpeed's operators into a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from launch.engine import operator_cache
from launch.engine.operator_cache import environment_key, own_folder, use_own_folder

OWN = str(Path(torch.__file__).parent)


def compiled(folder: Path, torch_folder: str) -> None:
    recipe = folder / "deepspeed_shm_comm/build.ninja"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(f"cflags = -isystem {torch_folder}/include\n")


@pytest.mark.parametrize(
    ("named", "made_by", "keyed"),
    [
        (False, None, True),
        (True, None, False),
        (True, OWN, False),
        (True, "/another/torch", True),
    ],
)
def test_a_folder_is_shared_with_no_other_environment(
    named: bool,
    made_by: str | None,
    keyed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(cpp_extension, "get_default_build_root", lambda: str(tmp_path))
    if named:
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    if made_by:
        compiled(tmp_path, made_by)
    expected = tmp_path / environment_key() if keyed else tmp_path
    assert own_folder() == expected
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", os.environ.get("TORCH_EXTENSIONS_DIR", ""))
    assert use_own_folder() == expected
    compiled(expected / "again", OWN)  # what it compiles there does not lead it elsewhere
    assert own_folder() == expected


def test_the_name_tells_environments_and_versions_apart(monkeypatch: pytest.MonkeyPatch):
    names = {environment_key()}
    monkeypatch.setattr(operator_cache.sys, "prefix", "/another/environment")
    names.add(environment_key())
    monkeypatch.setattr(operator_cache, "version", lambda package: "0")
    names.add(environment_key())
    assert len(names) == 3
