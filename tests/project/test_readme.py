"""What the documentation says exists: commands, recipes, files, pictures."""

from __future__ import annotations

import importlib.util
import re

import pytest
from paths import ROOT

from launch.config import load_recipe, override

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


@pytest.mark.parametrize("page", TEXTS)
def test_links_and_pictures_lead_somewhere(page: str):
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / target).exists(), f"{page} points to {target}"


@pytest.mark.parametrize("page", TEXTS)
def test_modules_that_are_run_exist(page: str):
    for module in re.findall(r"python3? -m ((?:core|data_shards|launch|tune)[\w.]*)", TEXTS[page]):
        assert importlib.util.find_spec(module), f"{page} runs {module}"


@pytest.mark.parametrize("page", TEXTS)
def test_recipes_and_their_changes_are_accepted(page: str):
    commands = re.findall(
        r"launch/train\.py ([a-z0-9_]+/[a-z0-9_]+)((?: [a-z_.]+=[^\s`]+)*)", TEXTS[page]
    )
    for recipe, changes in commands:
        override(load_recipe(recipe), changes.split())


@pytest.mark.parametrize("page", TEXTS)
def test_files_named_in_backticks_exist(page: str):
    folders = "core|data_shards|launch|tune|benchmarks|docs|examples|tests"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", TEXTS[page]):
        assert (ROOT / name).exists(), f"{page} names {name}"
