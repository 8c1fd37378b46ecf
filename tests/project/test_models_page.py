"""The page of all models is made from what the code says, and up to date."""

from __future__ import annotations

import pytest
from paths import ROOT

from benchmarks import models_page
from core.models import MODELS


def test_the_page_is_what_the_command_makes() -> None:
    text = models_page.PAGE.read_text(encoding="utf-8")
    _, _, made = text.partition("<!-- results: models -->\n")
    stale = "docs/models.md is stale: run python benchmarks/models_page.py"
    assert made == f"{models_page.page()}\n<!-- end of results -->\n", stale


@pytest.mark.parametrize("name", [name for name in MODELS if name != "baseline"])
def test_every_model_says_where_it_was_published_and_what_differs(name: str) -> None:
    assert models_page.source(MODELS[name]), f"{name}: no year in the docstring of its file"
    if name != "hscl":
        assert models_page.differences(MODELS[name])


def test_what_a_model_reads_is_told_from_its_options() -> None:
    assert models_page.reads(MODELS["baseline"]).startswith("text, and any others by name")
    assert models_page.reads(MODELS["mfn"]).startswith("text, audio, vision; aligned")
    assert models_page.reads(MODELS["tfn"]).endswith("each at its own length")
    assert (ROOT / "docs" / "models.md") == models_page.PAGE
