"""What the benchmarks share: how they read their words, where results came from, tables in
pages."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from core.command import run as run_command  # noqa: E402, F401
from launch.command_line import expand  # noqa: E402
from launch.config import ConfigError, suggest  # noqa: E402
from launch.reports.provenance import provenance  # noqa: E402


def read_words(
    defaults: Mapping[str, str], words: Sequence[str] | None = None
) -> tuple[dict[str, str], list[str]]:
    """A benchmark's own settings, with its defaults, and the settings that are left for its runs.

    Args:
        defaults: name of each own setting -> its value when the words do not say.
        words: of the command line; ``@FILE`` stands for the settings that a file holds.
    """
    own = dict(defaults)
    others: list[str] = []
    for word in expand(sys.argv[1:] if words is None else list(words)):
        name, _, value = word.partition("=")
        if name in own:
            own[name] = value
        else:
            others.append(word)
    return own, others


def refuse_others(others: Sequence[str], defaults: Mapping[str, str]) -> None:
    """For a benchmark whose runs take no settings.

    Raises:
        ConfigError: naming the first word that it does not know, and the nearest that it does.
    """
    if others:
        name = others[0].partition("=")[0]
        known = list(defaults)
        raise ConfigError(
            f"no setting {name!r} here{suggest(name, known)}; there are {', '.join(known)}"
        )


def made_by() -> dict[str, Any]:
    """``provenance`` whose command leaves out the folders of one machine, which are nobody's
    business."""
    here = provenance()
    script, *words = here["command"]
    public = [word for word in words if "/" not in word]
    return here | {"command": [f"benchmarks/{Path(script).name}", *public]}


def paste(text: str, marker: str, path: Path) -> None:
    """Replace what stands between the two marker lines of a page."""
    begin, end = f"<!-- results: {marker} -->", "<!-- end of results -->"
    before, found, rest = path.read_text(encoding="utf-8").partition(begin)
    if not found:
        raise SystemExit(f"{path} has no line {begin}")
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
