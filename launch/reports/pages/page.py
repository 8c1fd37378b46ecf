"""A page of sections, each with tables and charts, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from core.files import write_atomically
from launch.reports.pages.charts import Chart

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than words."""

    text: str
    shade: float | None = None  # from 0 to 1
    best: bool = False
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Its first column names the rows; the others hold numbers unless ``words`` names them."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    words: Sequence[str] = ()  # columns that are read, not compared


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it in this order."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=tuple)  # below all else

    @property
    def anchor(self) -> str:
        kept = [letter if letter.isalnum() else "-" for letter in self.title.lower()]
        return "".join(kept)


@cache
def _environment() -> jinja2.Environment:
    """Whatever is put into a page is escaped; only charts are markup, and made here."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(title: str, lead: str, sections: Sequence[Section], remarks: Sequence[str] = ()) -> str:
    """The whole page."""
    there = [one for one in sections if one.text or one.tables or one.charts or one.facts]
    values: dict[str, Any] = {
        "title": title,
        "lead": lead,
        "sections": there,
        "remarks": remarks,
        "style": style(),
        "is_cell": lambda value: isinstance(value, Cell),
    }
    return _environment().get_template("page.html").render(values)


@cache
def style() -> str:
    return (TEMPLATES / "page.css").read_text(encoding="utf-8")


def write_page(
    path: Path, title: str, lead: str, sections: Sequence[Section], remarks: Sequence[str] = ()
) -> None:
    write_atomically(path, render(title, lead, sections, remarks))


def write_figure(path: Path, chart: Chart) -> None:
    """A chart as an SVG file for papers: with the colours of the light page in it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg"><style>{style()}</style>'
    body = chart.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    begin, _, rest = body.partition(">")
    inner = head.partition(">")[2]
    write_atomically(path, f"{begin}>{inner}{rest}\n")
