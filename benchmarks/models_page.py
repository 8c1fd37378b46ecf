"""The page of all models, docs/models.md, from the registry, its docstrings and the recipes.

    python benchmarks/models_page.py

What stands above the page's marker is written by hand; all below is made.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import paste  # noqa: E402
from core.encoders.inputs import MODALITIES  # noqa: E402
from core.model import Model  # noqa: E402
from core.models import MODELS  # noqa: E402
from launch.config import recipe_names  # noqa: E402
from launch.reports.tables import markdown_table  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
# where a model was published, in the first parentheses of its file that have a year
SOURCE = re.compile(r"\(([^()]*\b(?:19|20)\d\d\b[^()]*)\)")
DIFFERENCES = re.compile(r"Differences? from[^:]*: ?")

AnyModel = type[Model[Any, Any]]


def main() -> None:
    paste(page(), "models", PAGE)


def page() -> str:
    """All that stands between the markers."""
    header = ["model", "what it does", "published", "reads", "recipes"]
    parts = []
    for task, title in (("sentiment", "Sentiment"), ("alignment", "Entity alignment")):
        rows = [row(name) for name, kind in MODELS.items() if kind.task == task]
        parts += [f"## {title}", "", markdown_table(header, rows), ""]
    parts += ["## What differs from the released code, and why", ""]
    for name, kind in MODELS.items():
        found = differences(kind)
        if found:
            parts.append(f"* **{name}**: {found}")
    return "\n".join(parts)


def row(name: str) -> list[str]:
    kind = MODELS[name]
    path = Path(inspect.getfile(kind)).relative_to(ROOT).as_posix()
    recipes = [recipe.partition("/")[2] for recipe in recipe_names() if _belongs(recipe, name)]
    return [
        f"[{name}](../{path})",
        idea(kind),
        source(kind) or "-",
        reads(kind),
        ", ".join(recipes),
    ]


def _belongs(recipe: str, model: str) -> bool:
    return recipe.partition("/")[0] == model


def idea(kind: AnyModel) -> str:
    """The first paragraph of the class's docstring."""
    return _markdown(_paragraphs(kind)[0])


def source(kind: AnyModel) -> str:
    """Authors, venue, year and number of the paper; empty where there is none."""
    found = SOURCE.search(" ".join((_module_docstring(kind) or "").split()))
    return found[1] if found else ""


def reads(kind: AnyModel) -> str:
    """Which modalities or views, and on which clock."""
    if kind.task == "alignment":
        return "views of two graphs"
    roles = "Literal" in str(get_type_hints(kind.Config, include_extras=True)["modalities"])
    read = ", ".join(MODALITIES) if roles else "text, and any others by name"
    clock = (
        "aligned to the words, or averaged by word" if kind.aligned else "each at its own length"
    )
    return f"{read}; {clock}"


def differences(kind: AnyModel) -> str:
    """The paragraph that says what differs from the released code; empty where none does."""
    for paragraph in [*_paragraphs(kind), *(_module_docstring(kind) or "").split("\n\n")]:
        text = " ".join(paragraph.split())
        found = DIFFERENCES.search(text)
        if found:
            return _markdown(text[found.end() :])
    return ""


def _paragraphs(kind: AnyModel) -> Sequence[str]:
    docstring = inspect.getdoc(kind)
    if not docstring:
        raise SystemExit(f"{kind.__name__} has no docstring, which its line is made of")
    return docstring.split("\n\n")


def _module_docstring(kind: AnyModel) -> str | None:
    return inspect.getdoc(sys.modules[kind.__module__])


def _markdown(text: str) -> str:
    """A docstring's words on one line, code between single backticks."""
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    main()
