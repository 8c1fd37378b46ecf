"""The lines of a run's ``log.jsonl``, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.file_access.regular_files import open_regular_file
from launch.config import ConfigError


def read_events(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of ``log.jsonl`` by kind. Steps that were taken again after a resume appear once,
    as taken last.

    Raises:
        ConfigError: a line that is whole, and no event.
    """
    path = run_dir / "log.jsonl"
    events: dict[str, dict[int, dict[str, Any]]] = {}
    with open_regular_file(path) as file:
        for number, line in enumerate(file, 1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the last line of a run that was killed while writing it
            if not _is_event(event):
                raise ConfigError(f"{path}, line {number}: no event of a run; remove the line")
            events.setdefault(event["kind"], {})[event["step"]] = event
    in_order = {}
    for kind, by_step in events.items():
        in_order[kind] = [by_step[step] for step in sorted(by_step)]
    return in_order


def _is_event(event: Any) -> bool:
    """Whether it says of what kind it is, and of which step."""
    if not isinstance(event, dict):
        return False
    return isinstance(event.get("kind"), str) and isinstance(event.get("step"), int)
