"""Imports go one way, and heavy libraries stay where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from paths import ROOT

ORDER = ["core", "data_shards", "launch", "tune"]
HOMES = {
    "transformers": ("core/encoders/text.py", "core/encoders/text_attention.py", "data_shards/"),
    "triton": ("core/kernels/",),
    "webdataset": ("data_shards/",),
    "deepspeed": ("launch/engine/deepspeed_engine.py",),
    "ray": ("tune/",),
    "optuna": ("tune/",),
}
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_there_are_files_to_check():
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_imports_only_itself_and_those_before_it(path: Path):
    own = ORDER.index(path.relative_to(ROOT).parts[0])
    later = imports(path) & set(ORDER[own + 1 :])
    assert not later, f"{path.relative_to(ROOT)} imports {later}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_only_in_their_homes(path: Path):
    place = path.relative_to(ROOT).as_posix()
    strays = {name for name in imports(path) & set(HOMES) if not place.startswith(HOMES[name])}
    assert not strays, f"{place} imports {strays}"


def test_only_the_restricted_reader_unpickles():
    for path in FILES:
        if "pickle" in imports(path):
            assert path.relative_to(ROOT).as_posix() == "data_shards/sources/pickles.py"
